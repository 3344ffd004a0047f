"""What is a planned agent program? Token counts and seconds: no text, no engine."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Shared(NamedTuple):
    """Tokens that others begin with, too: a system prompt, or a block of a trace. Equal names, equal tokens."""

    name: str
    tokens: int


class SegmentPlan(NamedTuple):
    """One generation, and the tool call after it: a program's last segment calls none, for 0 s.

    `spawns` names the child sessions that begin when the segment ends. The next segment comes when the tool is done
    and all of them have ended.
    """

    new_prompt: int  # tokens that follow what is kept of the context: the user's words or the tool's answer
    output: int  # tokens generated
    tool_s: float
    tool: str | None
    spawns: tuple[str, ...] = ()
    kept: int | None = None  # tokens of the context before that the prompt begins with; None for all of them


@dataclass(frozen=True, slots=True)
class ProgramPlan:
    """One program: when it arrives (seconds from the start), its segments in order, and what it shares with others.

    A child session has a `parent`, whose segment decides when it comes: its own `arrival_s` is not used.
    """

    id: str
    program_class: str
    arrival_s: float
    max_new_tokens: int  # what its requests declare: the longest output allowed
    segments: tuple[SegmentPlan, ...]
    prefix: tuple[Shared, ...] = ()  # what its first prompt begins with, before the first segment's `new_prompt`
    parent: str | None = None

    @property
    def shared_prefix(self) -> int:
        """How many tokens does it begin with that others may have computed?"""
        return sum(run.tokens for run in self.prefix)

    @property
    def tool_s(self) -> float:
        """How many seconds do its own tools take in all?"""
        return sum(segment.tool_s for segment in self.segments)

    def prompts(self) -> Iterator[int]:
        """How long is the prompt of each segment, in tokens? What is kept of all that came before, and what is new."""
        tokens = self.shared_prefix
        for segment in self.segments:
            tokens = (tokens if segment.kept is None else min(segment.kept, tokens)) + segment.new_prompt
            yield tokens
            tokens += segment.output


def families(plans: Sequence[ProgramPlan]) -> list[list[ProgramPlan]]:
    """Which plans belong together? Every program with its child sessions and theirs, itself first."""
    root: dict[str, str] = {}
    found: dict[str, list[ProgramPlan]] = {}
    for plan in plans:  # a parent comes before its children
        root[plan.id] = plan.id if plan.parent is None else root[plan.parent]
        found.setdefault(root[plan.id], []).append(plan)
    return list(found.values())


def busy(intervals: Sequence[tuple[float, float]]) -> float:
    """For how many seconds does at least one of `intervals` (from, to) last?"""
    seconds, end = 0.0, -math.inf
    for begun, ended in sorted(intervals):
        seconds += max(0.0, ended - max(begun, end))
        end = max(end, ended)
    return seconds
