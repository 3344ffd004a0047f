from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang import order as orders
from astraea_sglang.order import ORDERS, WITHOUT_PATIENCE, Waiting


def seg(rid="a", arrived=0.0, born=0.0, **more) -> Waiting:
    return Waiting(rid, arrived, born, **more)


def rank(order, queue) -> list[str]:
    return [segment.rid for segment in orders.rank(order, queue)]


seconds = st.floats(0, 1e6)
above = st.floats(1e-6, 1e6)
tokens = st.integers(0, 100_000)
segments = st.lists(
    st.builds(
        seg, st.text(max_size=3), seconds, seconds, tier=st.integers(-3, 3), wait=seconds, left=above, alone=above,
        decode=above, prefill=st.floats(0, 1), length=tokens, known=tokens, resident=tokens, attained=tokens,
        level=st.integers(0, 5), retracted=st.booleans(), late=st.floats(0, 3),
    ),
    unique_by=lambda s: s.rid,
)  # fmt: skip


def test_response_ratio_is_one_plus_wait_over_work():
    assert seg(wait=30, decode=20).response_ratio == 2.5  # Astraea eq. 4


def test_resident_tokens_are_no_work():
    assert seg(prefill=0.01, length=1000, resident=600, decode=1.0).work == 5.0


def test_short_programs_go_first_when_nobody_waited():
    assert rank("hrrn", [seg("long", left=9), seg("short", left=2)]) == ["short", "long"]


def test_a_long_program_that_waited_overtakes_a_fresh_short_one():
    assert rank("hrrn", [seg("fresh", left=1), seg("long", left=2, alone=2, wait=60)]) == ["long", "fresh"]


def test_what_must_be_recomputed_is_work_and_what_is_resident_goes_first():
    lost = seg("lost", left=5, prefill=0.001, known=2000, length=2000)
    held = replace(lost, rid="held", resident=2000)
    assert rank("hrrn", [lost, seg("new", left=5), held]) == ["held", "new", "lost"]
    assert rank("srpt", [lost, seg("new", left=5), held])[-1] == "lost"


def test_residency_takes_off_at_most_nineteen_twentieths_of_the_remaining_work():
    rich = seg("rich", left=10, prefill=1, known=1000, resident=1000)
    assert rank("hrrn", [rich, seg("tiny", left=0.4)]) == ["tiny", "rich"]


def test_with_a_large_gamma_the_default_order_is_the_papers(monkeypatch):
    queue = [seg(str(i), left=1 + i % 3, alone=1 + i % 3, decode=1 + i % 3, wait=i * 7.3 % 5) for i in range(20)]
    monkeypatch.setattr(orders, "GAMMA", 300.0)  # k^(1/gamma) = R^(1/gamma) / ratio
    assert rank("hrrn", queue) == rank("mlfq", queue)


def test_mlfq_serves_a_higher_queue_before_any_response_ratio():
    assert rank("mlfq", [seg("starved", wait=49, level=1), seg("fresh", level=0)]) == ["fresh", "starved"]


def test_mlfq_uses_the_response_ratio_inside_a_queue():
    assert rank("mlfq", [seg("fresh", level=2), seg("waited", wait=5, level=2)]) == ["waited", "fresh"]


def test_fcfs_looks_at_segment_arrival_only():
    assert rank("fcfs", [seg("late", arrived=2, wait=99), seg("early", arrived=1)]) == ["early", "late"]


def test_program_fcfs_looks_at_the_arrival_of_the_run_a_segment_belongs_to():
    assert rank("program-fcfs", [seg("new", arrived=1, born=1), seg("old", arrived=2, born=0)]) == ["old", "new"]


def test_plas_serves_the_program_that_has_had_least():
    assert rank("plas", [seg("had much", attained=900), seg("had little", attained=9)]) == ["had little", "had much"]


def test_srpt_looks_at_remaining_work_whatever_was_waited():
    assert rank("srpt", [seg("long", left=9, wait=1e6), seg("short", left=2)]) == ["short", "long"]


def test_continuum_resumes_what_was_preempted_before_older_programs():
    queue = [seg("old", born=0), seg("new", born=1), seg("preempted", born=2, retracted=True)]
    assert rank("continuum", queue) == ["preempted", "old", "new"]


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_a_users_own_priority_stands_above_every_order(order):
    best, worst = seg("best", 9, 9, tier=-1, left=1e9, attained=10**9, level=5), seg("worst", tier=2, wait=1e9)
    assert rank(order, [worst, best]) == ["best", "worst"]


@given(segments, st.sampled_from(sorted(ORDERS)))
def test_every_order_ranks_every_segment_once_whatever_the_queues_order(queue, order):
    ranked = rank(order, queue)
    assert sorted(ranked) == sorted(s.rid for s in queue)
    assert rank(order, reversed(queue)) == ranked


@given(segments, st.sampled_from(sorted(set(ORDERS) - set(WITHOUT_PATIENCE))))
def test_an_overdue_segment_is_passed_by_overdue_ones_that_came_earlier_only(queue, order):
    victim = seg("victim", 5.0, 5.0, left=1e9, attained=10**9, level=5, late=1.01)
    ahead = orders.rank(order, [*(replace(s, tier=0) for s in queue), victim])
    ahead = ahead[: [s.rid for s in ahead].index("victim")]
    assert all(s.late > 1 and s.arrived <= 5.0 for s in ahead)


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_only_srpt_lets_a_stream_of_short_programs_starve_a_long_one(order):
    victim = seg("victim", left=100, alone=100, decode=100, attained=10_000, level=1)
    for now in range(1, 5002):  # one fresh program a second, one served a second; a patience of 50
        victim.wait, victim.late = now, now / (50 * victim.alone)
        if rank(order, [victim, seg("fresh", float(now), float(now))])[0] == "victim":
            break
    else:
        assert order == "srpt"
        return
    assert order != "srpt"
