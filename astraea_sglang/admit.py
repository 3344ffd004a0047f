"""May this waiting segment start? The working-set gate: no cold start that would push out KV in use or due back soon.

Past its knee an engine does not lack compute, it lacks memory: returning segments find their prefix evicted, recompute
it, and evict others. The gate keeps the working set below the memory there is (../README.md, "Decisions").
"""

from collections.abc import Iterable

from astraea_sglang.order import Waiting

WARM = 0.5  # share of its prompt that a warm segment has resident


def blocked(ranked: Iterable[Waiting], used: float, room: float, *, idle: bool) -> set[str]:
    """Which of the `ranked` segments, next one first, may not start now? Their rids.

    `used` tokens are in use or due back soon, what waiting segments have resident included; `room` tokens may be. A
    segment is cold with less than half of its prompt in the radix tree. Warm ones always start: their KV is there, and
    finishing them frees it. A cold one starts if what it adds, prompt and predicted output, fits; else it is skipped.
    Those behind it may pass until a skipped one is overdue: then no cold segment passes it, nor any program that has
    not begun. If it waits as long again, none at all does, so that the engine drains. Where nothing runs (`idle`) and
    nobody may start, the first does. So every segment starts in the end.
    """
    skipped: list[str] = []
    started = 0
    late = 0.0  # how late is the latest that was skipped
    for segment in ranked:
        cold = segment.resident < WARM * segment.length
        growth = segment.length - segment.resident + segment.reserve
        if late > 2 or (late > 1 and not segment.started) or (cold and (late > 1 or used + growth > room)):
            skipped.append(segment.rid)
            late = max(late, segment.late)
        else:
            used += growth
            started += 1
    if idle and not started:
        return set(skipped[1:])
    return set(skipped)


class WorkingSet:
    """How many KV tokens are in use or due back soon? Prefixes that a program class shares count once.

    A program's shared prefix is what it found resident when it came. (Exact would be the union of all paths in the
    radix tree, a walk of every path in every pass.)
    """

    def __init__(self) -> None:
        self._private = 0
        self._shared: dict[str, int] = {}

    def add(self, tokens: int, program_class: str, shared: int) -> None:
        """`tokens` of a program are resident, of which its class may share the first `shared`."""
        if shared and tokens:
            self._private += max(0, tokens - shared)
            self._shared[program_class] = max(self._shared.get(program_class, 0), min(tokens, shared))
        else:
            self._private += tokens

    @property
    def tokens(self) -> int:
        """The size of the set."""
        return self._private + sum(self._shared.values())
