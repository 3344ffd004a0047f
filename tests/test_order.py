from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang import order as orders
from astraea_sglang.order import ORDERS, Waiting


def seg(rid="a", arrived=0.0, wait=0.0, work=1.0, level=0, program_arrived=0.0) -> Waiting:
    return Waiting(rid, arrived, program_arrived, wait, work, level)


def rank(order, queue) -> list[str]:
    return [segment.rid for segment in orders.rank(order, queue)]


seconds = st.floats(0, 1e6)
segments = st.lists(
    st.builds(seg, st.text(max_size=3), seconds, seconds, st.floats(1e-9, 1e6), st.integers(0, 5), seconds),
    unique_by=lambda s: s.rid,
)


def test_response_ratio_is_one_plus_wait_over_work():
    assert seg(wait=30, work=20).response_ratio == 2.5  # Astraea eq. 4


def test_short_work_goes_first_when_nobody_waited_longer():
    assert rank("hrrn", [seg("long", wait=1, work=9), seg("short", wait=1, work=2)]) == ["short", "long"]


def test_a_long_segment_that_waited_overtakes_a_fresh_short_one():
    assert rank("hrrn", [seg("fresh", wait=0, work=1), seg("long", wait=60, work=20)]) == ["long", "fresh"]


def test_a_programs_earlier_waits_lift_its_next_segment():
    assert rank("hrrn", [seg("first", wait=1), seg("sixth", wait=6, arrived=9)]) == ["sixth", "first"]


def test_mlfq_serves_a_higher_queue_before_any_response_ratio():
    assert rank("mlfq", [seg("starved", wait=99, level=1), seg("fresh", level=0)]) == ["fresh", "starved"]


def test_mlfq_uses_the_response_ratio_inside_a_queue():
    assert rank("mlfq", [seg("fresh", level=2), seg("waited", wait=5, level=2)]) == ["waited", "fresh"]


def test_fcfs_looks_at_segment_arrival_only():
    assert rank("fcfs", [seg("late", arrived=2, wait=99), seg("early", arrived=1)]) == ["early", "late"]


@given(segments, st.sampled_from(sorted(ORDERS)))
def test_every_order_ranks_every_segment_once_whatever_the_queues_order(queue, order):
    ranked = rank(order, queue)
    assert sorted(ranked) == sorted(s.rid for s in queue)
    assert rank(order, reversed(queue)) == ranked


@given(seg1=st.builds(seg, work=st.floats(0.001, 1e3)), others=st.lists(st.floats(0.001, 1e3), max_size=20))
def test_no_segment_waits_for_ever_under_hrrn(seg1, others):
    # However many fresh segments keep arriving, one that has waited for any time is ahead of all of them.
    waited = seg1._replace(rid="waited", wait=1e-3)
    assert rank("hrrn", [*(seg(str(i), work=w) for i, w in enumerate(others)), waited])[0] == "waited"
