from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.mlfq import after_aging, after_segment

THRESHOLDS = (128, 256, 384, 512, 640)


def test_a_segment_over_its_queues_threshold_moves_the_program_one_down():
    assert after_segment(1, cost=257, yielded=True, thresholds=THRESHOLDS) == 2


def test_a_segment_that_yields_early_moves_the_program_one_up():
    assert after_segment(3, cost=511, yielded=True, thresholds=THRESHOLDS) == 2


def test_a_segment_that_uses_the_quota_up_exactly_leaves_the_program_where_it_is():
    assert after_segment(1, cost=256, yielded=True, thresholds=THRESHOLDS) == 1


def test_a_last_segment_below_its_quota_promotes_nobody():
    assert after_segment(3, cost=10, yielded=False, thresholds=THRESHOLDS) == 3


def test_the_last_queue_has_nothing_below_and_can_be_left_by_yielding():
    assert after_segment(5, cost=10_000, yielded=True, thresholds=THRESHOLDS) == 5
    assert after_segment(5, cost=639, yielded=True, thresholds=THRESHOLDS) == 4


def test_aging_lifts_only_the_last_queue_and_only_beyond_the_threshold():
    assert after_aging(5, 10.1, last=5, aging=10) == 0
    assert after_aging(5, 10.0, last=5, aging=10) == 5
    assert after_aging(4, 99.0, last=5, aging=10) == 4


@given(st.integers(1, 8), st.data())
def test_a_program_never_leaves_the_queues_and_moves_one_at_a_time(queues, data):
    thresholds = tuple(128 * (i + 1) for i in range(queues - 1))
    level = 0
    for cost, yielded in data.draw(st.lists(st.tuples(st.integers(0, 2000), st.booleans()), max_size=50)):
        moved = after_segment(level, cost, yielded, thresholds)
        assert 0 <= moved < queues and abs(moved - level) <= 1
        level = moved
