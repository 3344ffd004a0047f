from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.admit import WARM, WorkingSet, blocked
from astraea_sglang.order import Waiting


def cold(rid="cold", length=1000, **more) -> Waiting:
    return Waiting(rid, 0.0, 0.0, length=length, reserve=100, **more)


def warm(rid="warm", length=1000, **more) -> Waiting:
    return Waiting(rid, 0.0, 0.0, length=length, resident=length * 9 // 10, reserve=100, **more)


def test_a_cold_segment_that_fits_starts():
    assert blocked([cold()], used=8900, room=10_000, idle=False) == set()


def test_a_cold_segment_that_would_push_out_the_working_set_is_skipped():
    assert blocked([cold()], used=8901, room=10_000, idle=False) == {"cold"}


def test_a_warm_segment_always_starts():
    assert blocked([warm()], used=99_999, room=10_000, idle=False) == set()


def test_a_skipped_segment_blocks_nobody_behind_it():
    queue = [cold("big", length=5000), cold("small", length=10), warm()]
    assert blocked(queue, used=9000, room=10_000, idle=False) == {"big"}


def test_what_starts_in_this_pass_counts_for_those_behind():
    assert blocked([cold("a"), cold("b")], used=8000, room=10_000, idle=False) == {"b"}


def test_neither_a_cold_segment_nor_a_new_program_passes_an_overdue_one():
    newcomer = warm("newcomer", started=False)  # warm by a prefix it shares
    queue = [cold("big", length=5000, late=1.5), cold("small", length=10), newcomer, warm()]
    assert blocked(queue, used=9000, room=10_000, idle=False) == {"big", "small", "newcomer"}


def test_nothing_at_all_passes_one_that_waited_as_long_again():
    queue = [warm("older"), cold("big", length=5000, late=2.1), warm()]
    assert blocked(queue, used=9000, room=10_000, idle=False) == {"big", "warm"}
    assert blocked(queue[1:], used=9000, room=10_000, idle=True) == {"warm"}  # the engine has drained


def test_an_idle_engine_starts_the_first_whatever_its_size():
    assert blocked([cold("a", length=99_999), cold("b", length=99_999)], 0, room=10_000, idle=True) == {"b"}


def test_a_prefix_that_a_class_shares_counts_once_and_other_classes_prefixes_too():
    used = WorkingSet()
    for tokens, name in ((1100, "coder"), (1200, "coder"), (1300, "critic")):
        used.add(tokens, name, 1000)
    used.add(50, "coder", 0)
    assert used.tokens == 100 + 200 + 300 + 2 * 1000 + 50


segments = st.lists(
    st.builds(
        lambda length, share, late, started: Waiting(
            "", 0.0, 0.0, length=length, resident=int(length * share), reserve=100, started=started, late=late
        ),
        st.integers(0, 20_000), st.floats(0, 1), st.floats(0, 3), st.booleans(),
    ),
    max_size=30,
)  # fmt: skip


def numbered(queue: list[Waiting]) -> list[Waiting]:
    for i, segment in enumerate(queue):
        segment.rid = str(i)
    return queue


@given(segments, st.floats(0, 20_000), st.floats(1, 20_000))
def test_the_gate_never_stops_an_idle_engine(queue, used, room):
    assert not queue or len(blocked(numbered(queue), used, room, idle=True)) < len(queue)


@given(segments, st.floats(0, 20_000), st.floats(1, 20_000))
def test_a_warm_segment_is_skipped_only_behind_a_late_one(queue, used, room):
    skipped = blocked(numbered(queue), used, room, idle=False)
    late = 0.0
    for segment in queue:
        if segment.rid in skipped:
            assert segment.resident < WARM * segment.length or late > (2 if segment.started else 1)
        late = max(late, segment.late if segment.rid in skipped else 0.0)


@given(segments, st.floats(0, 20_000), st.floats(1, 20_000))
def test_cold_segments_that_start_fit_beside_the_working_set(queue, used, room):
    skipped = blocked(numbered(queue), used, room, idle=False)
    for segment in queue:
        if segment.rid not in skipped:
            used += segment.length - segment.resident + segment.reserve
            assert segment.resident >= WARM * segment.length or used <= room + 1e-6
