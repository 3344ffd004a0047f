"""Programs that no client named: whose next segment is a prompt, and which of them are over but may go on?"""

from collections.abc import Sequence

from astraea_sglang.beginnings import Prompt
from astraea_sglang.continuations import ENOUGH, Continuations
from astraea_sglang.program import Program, Segment

NAMELESS = "~nameless"  # their class, unless they say another: they do not teach us of those that have a name
KEPT = 4096  # finished segments, and programs that are over


class Nameless:
    """A request without identity is a program of one segment, until a later prompt continues its path."""

    def __init__(self, on: bool) -> None:
        self.on = on
        self.continuations = Continuations(KEPT)
        self._over: dict[str, tuple[Program, float]] = {}  # and since when, seconds

    def read(self, prompt: Sequence[int], space: str) -> Prompt | None:
        """A prompt in token ids, as it is compared with others of its `space`; None if it will not be."""
        return Prompt(prompt, space) if self.on and prompt else None

    def finished(self, segment: Segment, output: Sequence[int], *, called: bool) -> None:
        """A segment is over, `output` in token ids. Some clients write what was `called` in words of their own."""
        if segment.read is not None:
            enough = 0 if called else ENOUGH
            self.continuations.finished(segment.program.key, segment.read, output, enough=enough)

    def over(self, program: Program, now: float, *, may_go_on: bool) -> None:
        """A program is over; one that may go on is remembered."""
        if not program.nameless or not self.on:
            return
        if not may_go_on:
            self.continuations.forget(program.key)
            return
        self._over[program.key] = program, now
        if len(self._over) > KEPT:
            oldest = next(iter(self._over))
            del self._over[oldest]
            self.continuations.forget(oldest)

    def again(self, key: str) -> Program | None:
        """The program that was over and goes on, paused meanwhile; None if it is not remembered."""
        program, since = self._over.pop(key, (None, 0.0))
        if program is not None:
            program.idle_since = since
        return program
