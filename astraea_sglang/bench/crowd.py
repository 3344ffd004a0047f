"""Which segment comes when? Arrivals, tools and child sessions of a plan: pure bookkeeping, whatever the clock."""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from astraea_sglang.bench.plans import ProgramPlan


class Coming(NamedTuple):
    """A segment that comes at `due` (seconds): the program's number in the plan, and the segment's in the program."""

    due: float
    number: int
    segment: int


@dataclass(slots=True)
class _Join:
    """The segment that waits for child sessions, and for a tool besides."""

    segment: int
    tool_done: float
    alive: int


class Crowd:
    """Every program of `plans`, from `start` on: who comes next, and when the segment after one that ended does.

    With `concurrency` the loop is closed: so many programs are alive, whatever their arrivals, and the next begins when
    one ends.
    """

    def __init__(self, plans: Sequence[ProgramPlan], *, start: float = 0.0, concurrency: int | None = None) -> None:
        self.plans = plans
        self.unfinished = len(plans)
        self.done = 0  # programs that are no child sessions
        self._number = {plan.id: number for number, plan in enumerate(plans)}
        self._joins: dict[int, _Join] = {}  # by the parent's number
        first = [number for number, plan in enumerate(plans) if plan.parent is None]
        self._later = deque(first[concurrency:] if concurrency else ())
        self._closed = concurrency is not None
        self._coming = [
            Coming(start if self._closed else start + plans[number].arrival_s, number, 0)
            for number in first[: concurrency or len(first)]
        ]
        heapq.heapify(self._coming)

    @property
    def next_due(self) -> float | None:
        """When does the next segment come? None when nothing is to come before a segment ends."""
        return self._coming[0].due if self._coming else None

    def due(self, now: float) -> list[Coming]:
        """Which segments have come by `now`, earliest first? Each is told once."""
        found = []
        while self._coming and self._coming[0].due <= now:
            found.append(heapq.heappop(self._coming))
        return found

    def ended(self, number: int, segment: int, now: float) -> None:
        """A segment ended: its children begin, its tool runs, or its program is over."""
        plan = self.plans[number]
        done = plan.segments[segment]
        for child in done.spawns:
            heapq.heappush(self._coming, Coming(now, self._number[child], 0))
        if segment + 1 == len(plan.segments):
            self._over(number, now)
        elif done.spawns:
            self._joins[number] = _Join(segment + 1, now + done.tool_s, len(done.spawns))
        else:
            heapq.heappush(self._coming, Coming(now + done.tool_s, number, segment + 1))

    def _over(self, number: int, now: float) -> None:
        self.unfinished -= 1
        parent = self.plans[number].parent
        if parent is None:
            self.done += 1
            if self._later:
                heapq.heappush(self._coming, Coming(now, self._later.popleft(), 0))
            return
        waiting = self._number[parent]
        join = self._joins.get(waiting)
        if join is None:  # spawned by its parent's last segment: nobody waits for it
            return
        join.alive -= 1
        if not join.alive:
            del self._joins[waiting]
            heapq.heappush(self._coming, Coming(max(join.tool_done, now), waiting, join.segment))
