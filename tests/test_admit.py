from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.admit import Candidate, blocked


def cold(rid="cold", prompt=1000, **more) -> Candidate:
    return Candidate(rid, prompt, resident=0, reserve=100, **more)


def warm(rid="warm", prompt=1000, **more) -> Candidate:
    return Candidate(rid, prompt, resident=900, reserve=100, **more)


def test_a_cold_segment_that_fits_starts():
    assert blocked([cold()], used=8900, room=10_000, idle=False) == set()


def test_a_cold_segment_that_would_push_out_the_working_set_is_skipped():
    assert blocked([cold()], used=8901, room=10_000, idle=False) == {"cold"}


def test_a_warm_segment_always_starts():
    assert blocked([warm()], used=99_999, room=10_000, idle=False) == set()


def test_a_skipped_segment_blocks_nobody_behind_it():
    queue = [cold("big", prompt=5000), cold("small", prompt=10), warm()]
    assert blocked(queue, used=9000, room=10_000, idle=False) == {"big"}


def test_what_starts_in_this_pass_counts_for_those_behind():
    assert blocked([cold("a"), cold("b")], used=8000, room=10_000, idle=False) == {"b"}


def test_no_cold_segment_passes_an_overdue_one():
    queue = [cold("big", prompt=5000, overdue=True), cold("small", prompt=10), warm()]
    assert blocked(queue, used=9000, room=10_000, idle=False) == {"big", "small"}


def test_an_idle_engine_starts_the_first_whatever_its_size():
    assert blocked([cold("a", prompt=99_999), cold("b", prompt=99_999)], 0, room=10_000, idle=True) == {"b"}


segments = st.lists(
    st.tuples(st.integers(0, 20_000), st.floats(0, 1), st.booleans()).map(
        lambda t: Candidate("", t[0], int(t[0] * t[1]), 100, t[2])
    ),
    max_size=30,
).map(lambda many: [s._replace(rid=str(i)) for i, s in enumerate(many)])


@given(segments, st.floats(0, 20_000), st.floats(1, 20_000), st.booleans())
def test_the_gate_never_stops_an_idle_engine_and_never_a_warm_segment(queue, working_set, room, idle):
    skipped = blocked(queue, working_set, room, idle=idle)
    assert not idle or not queue or len(skipped) < len(queue)
    assert all(s.cold for s in queue if s.rid in skipped)


@given(segments, st.floats(0, 20_000), st.floats(1, 20_000))
def test_cold_segments_that_start_fit_beside_the_working_set(queue, working_set, room):
    skipped = blocked(queue, working_set, room, idle=False)
    used = working_set
    for segment in queue:
        if segment.rid not in skipped:
            used += segment.growth
            assert not segment.cold or used <= room + 1e-6
