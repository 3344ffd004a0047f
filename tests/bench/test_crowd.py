import heapq

from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.bench.crowd import Crowd
from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan


def chain(id: str, arrival: float = 0.0, *tools: float, parent: str | None = None) -> ProgramPlan:
    """A program that calls these tools, one after another, and answers."""
    calls = [SegmentPlan(10, 5, seconds, "t") for seconds in tools]
    return ProgramPlan(id, "c", arrival, 64, (*calls, SegmentPlan(10, 5, 0.0, None)), parent=parent)


def parent(id: str, tool_s: float, *children: str) -> ProgramPlan:
    """A program whose first segment sends out children, and calls a tool besides."""
    segments = SegmentPlan(10, 5, tool_s, "agents", children), SegmentPlan(10, 5, 0.0, None)
    return ProgramPlan(id, "c", 0.0, 64, segments)


def played(crowd: Crowd, plans: list[ProgramPlan], takes: float = 1.0) -> list[tuple[float, str, int]]:
    """Every segment with the time at which it came, if each takes so many seconds and none waits for another."""
    running: list[tuple[float, int, int]] = []
    came = []
    while crowd.unfinished:
        due = [time for time in (crowd.next_due, running[0][0] if running else None) if time is not None]
        now = min(due)
        for time, number, segment in crowd.due(now):
            came.append((time, plans[number].id, segment))
            heapq.heappush(running, (time + takes, number, segment))
        while running and running[0][0] <= now:
            end, number, segment = heapq.heappop(running)
            crowd.ended(number, segment, end)
    return came


def test_programs_come_when_they_arrive_and_return_when_their_tools_are_done():
    plans = [chain("b", 5.0), chain("a", 0.0, 2.0)]
    assert played(Crowd(plans), plans) == [(0.0, "a", 0), (3.0, "a", 1), (5.0, "b", 0)]


def test_children_come_at_once_and_the_parent_waits_for_the_last_of_them():
    plans = [parent("p", 1.0, "x", "y"), chain("x", parent="p"), chain("y", 0.0, 4.0, parent="p")]
    assert played(Crowd(plans), plans) == [
        (0.0, "p", 0), (1.0, "x", 0), (1.0, "y", 0), (6.0, "y", 1), (7.0, "p", 1),
    ]  # fmt: skip


def test_a_tool_that_outlasts_the_children_decides():
    plans = [parent("p", 9.0, "x"), chain("x", parent="p")]
    assert played(Crowd(plans), plans)[-1] == (10.0, "p", 1)


def test_in_a_closed_loop_the_next_program_begins_when_one_ends():
    plans = [chain(id, 100.0) for id in "abc"]
    assert played(Crowd(plans, start=7.0, concurrency=2), plans) == [(7.0, "a", 0), (7.0, "b", 0), (8.0, "c", 0)]


def test_children_are_no_programs_of_their_own():
    plans = [parent("p", 0.0, "x"), chain("x", parent="p")]
    crowd = Crowd(plans)
    played(crowd, plans)
    assert (crowd.done, crowd.unfinished) == (1, 0)


DRAWN = st.lists(st.tuples(st.floats(0, 50), st.lists(st.floats(0, 20), max_size=4)), min_size=1, max_size=12)


@given(DRAWN, st.none() | st.integers(1, 5))
def test_every_segment_comes_once_and_in_order(drawn, concurrency):
    plans = [chain(f"p{i}", arrival, *tools) for i, (arrival, tools) in enumerate(drawn)]
    came = played(Crowd(plans, concurrency=concurrency), plans)
    assert sorted((id, segment) for _, id, segment in came) == sorted(
        (plan.id, index) for plan in plans for index in range(len(plan.segments))
    )
    assert [time for time, _, _ in came] == sorted(time for time, _, _ in came)
    if concurrency:
        ends = {id: time + 1.0 for time, id, _ in came}
        begins = [(time, id) for time, id, segment in came if segment == 0]
        for now, _ in begins:
            assert sum(begun <= now < ends[id] for begun, id in begins) <= concurrency
