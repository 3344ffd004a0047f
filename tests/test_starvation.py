"""No program waits for ever: the real table, orders and gate on a small engine, against crowds that never end."""

from collections.abc import Callable, Iterator

import pytest

from astraea_sglang.hints import Hints
from astraea_sglang.order import ORDERS
from astraea_sglang.program import Segment
from astraea_sglang.table import Pool, ProgramTable
from tests.builders import table

POOL = Pool(10_000, 8)
ROWS = 4  # segments that run at once
STEP = 0.25  # seconds between two passes
RUNS = 1.0  # seconds that a segment of the crowd runs
PATIENCE = 5
ENOUGH = 400.0  # seconds: far beyond twice the victim's patience, which is about ten of its seconds

Crowd = Callable[[ProgramTable], Iterator[tuple[Hints, int, int]]]  # hints, prompt and resident tokens of newcomers


def fresh_short_programs(t: ProgramTable) -> Iterator[tuple[Hints, int, int]]:
    for i in range(10**6):
        yield Hints(program_id=f"fresh{i}", final=True), 50, 0


def programs_that_are_warm_by_a_prefix_they_share(t: ProgramTable) -> Iterator[tuple[Hints, int, int]]:
    for i in range(10**6):
        yield Hints(program_id=f"shared{i}", program_class="coder", final=True), 1000, 900


def children_of_one_old_parent(t: ProgramTable) -> Iterator[tuple[Hints, int, int]]:
    yield Hints(program_id="parent"), 100, 0
    for i in range(10**6):
        yield Hints(program_id=f"child{i}", parent_id="parent", final=True), 50, 0


def one_program_without_end(t: ProgramTable) -> Iterator[tuple[Hints, int, int]]:
    while True:
        yield Hints(program_id="endless"), 2500, 2400


def eight_chats_without_end(t: ProgramTable) -> Iterator[tuple[Hints, int, int]]:
    while True:
        for i in range(8):
            yield Hints(program_id=f"chat{i}"), 1200, 1100


CROWDS = [
    fresh_short_programs, programs_that_are_warm_by_a_prefix_they_share, children_of_one_old_parent,
    one_program_without_end, eight_chats_without_end,
]  # fmt: skip


def waits(order: str, crowd: Crowd) -> float:
    """For how many seconds does a cold program of 4,000 tokens wait that comes 30 s after the crowd?"""
    t = table(order=order, patience=PATIENCE)
    newcomers = crowd(t)
    waiting: dict[str, tuple[Segment, int]] = {}
    running: list[tuple[float, Segment]] = []
    victim: Segment | None = None
    while t.now < 30 + ENOUGH:
        t.advance(t.now + STEP)
        if victim is None and t.now >= 30:
            victim = t.arrive("victim", Hints(program_id="victim", final=True), 4000, 100)
            waiting["victim"] = victim, 0
        for until, segment in [pair for pair in running if pair[0] <= t.now]:
            running.remove((until, segment))
            t.serve(segment, 8)
            t.finish(segment)
        while len(waiting) < 8:
            hints, prompt, resident = next(newcomers)
            rid = f"{t.now} {len(waiting)} {hints.program_id}"
            waiting[rid] = t.arrive(rid, hints, prompt, 100), resident
        plan = t.plan(list(waiting.values()), POOL)
        free = [rid for rid in plan.order if rid not in plan.blocked][: ROWS - len(running)]
        for rid in free:
            segment, resident = waiting.pop(rid)
            if segment is victim:
                return t.now - 30
            t.start(segment, segment.length - resident)
            running.append((t.now + RUNS, segment))
    return float("inf")


@pytest.mark.parametrize("crowd", CROWDS)
@pytest.mark.parametrize("order", sorted(set(ORDERS) - {"srpt"}))
def test_no_program_waits_for_ever(order, crowd):
    assert waits(order, crowd) < ENOUGH


def test_under_srpt_a_long_program_waits_while_shorter_ones_come():
    assert waits("srpt", fresh_short_programs) == float("inf")
