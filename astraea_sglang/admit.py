"""May this waiting segment start? The working-set gate: no cold start that would push out KV in use or due back soon.

Past its knee an engine does not lack compute, it lacks memory: returning segments find their prefix evicted, recompute
it, and evict others. The gate keeps the working set below the memory there is (../README.md, "Decisions").
"""

from collections.abc import Iterable
from typing import NamedTuple

from astraea_sglang.program import Program

WARM = 0.5  # share of its prompt that a warm segment has resident
OVERDUE = 100.0  # response ratio; at 10 short chats stood behind long agents (mixed load, engine time 0.62, not 0.49)


class Candidate(NamedTuple):
    """A waiting segment as the gate sees it; lengths in tokens."""

    rid: str
    prompt: int
    resident: int  # of the prompt, in the radix tree (host copies included)
    reserve: float  # what it will generate, predicted
    overdue: bool = False  # its response ratio is beyond OVERDUE

    @property
    def cold(self) -> bool:
        """Would it start with less than half of its prompt?"""
        return self.resident < WARM * self.prompt

    @property
    def growth(self) -> float:
        """By how many tokens does the working set grow when it starts?"""
        return self.prompt - self.resident + self.reserve


def working_set(parts: Iterable[tuple[int, Program]]) -> int:
    """How many KV tokens are in use or due back soon? From pairs of a length and the program it belongs to.

    What programs share counts once, as far as it is known: the longest prefix that one of them found resident when it
    came. (Exact would be the union of their paths in the radix tree, a walk of every path in every pass.)
    """
    private, shared = 0, 0
    for tokens, program in parts:
        private += max(0, tokens - program.shared)
        shared = max(shared, min(tokens, program.shared))
    return private + shared


def blocked(ranked: Iterable[Candidate], used: float, room: float, *, idle: bool) -> set[str]:
    """Which of the `ranked` segments, next one first, may not start now? Their rids.

    `used` tokens are in use or due back soon, what waiting segments have resident included; `room` tokens may
    be. Warm segments always start: their KV is there, and finishing them frees it. A cold one starts if it fits, else
    it is skipped; those behind it may pass, until one that was skipped is overdue: then no cold segment passes it, so
    that every segment starts in the end. Where nothing runs (`idle`) and nobody may start, the first does.
    """
    skipped: list[str] = []
    started = 0
    closed = False
    for segment in ranked:
        if segment.cold and (closed or used + segment.growth > room):
            skipped.append(segment.rid)
            closed = closed or segment.overdue
        else:
            used += segment.growth
            started += 1
    if idle and not started:
        return set(skipped[1:])
    return set(skipped)
