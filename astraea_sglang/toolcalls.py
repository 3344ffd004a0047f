"""Which tools of a paused program run now? Parsed from its output, declared, or told of by its harness."""

from collections.abc import Sequence
from typing import NamedTuple

from astraea_sglang.hints import NAME_LENGTH

ANSWERS = frozenset({"final_answer", "final_result"})  # smolagents, pydantic-ai: "tools" that take a program's answer
MOST_RUNNING = 64
MOST_KEPT = 64  # names of tools that a program has called, for people to see


class Call(NamedTuple):
    """One tool call; `since` is None until its harness says that it has begun, seconds."""

    tool: str
    since: float | None = None


class ToolCalls:
    """A program's tool calls. Several may run at once: the pause ends when all are over, or the next segment comes."""

    __slots__ = ("called", "running")

    def __init__(self) -> None:
        self.called: list[str] = []  # tools, in order, the first MOST_KEPT
        self.running: dict[str, Call] = {}  # by the harness's id of the call, or one of ours, which no client can send

    def expect(self, tools: Sequence[str]) -> None:
        """A segment's output calls these tools; those of its last pause are over."""
        self.running = {f"\0{i}": Call(tool) for i, tool in enumerate(tools[:MOST_RUNNING])}
        for tool in tools:
            self._name(tool)

    def start(self, id: str, tool: str, now: float) -> bool:
        """A harness says that a call begins; False if that was said before, or too many run.

        It is one that the output announced, if any of that tool has not begun yet.
        """
        if id in self.running or len(self.running) >= MOST_RUNNING:
            return False
        announced = next((key for key, call in self.running.items() if call == Call(tool)), None)
        if announced is None:
            self._name(tool)
        else:
            del self.running[announced]
        self.running[id] = Call(tool, now)
        return True

    def finish(self, id: str | None, tool: str | None) -> Call | None:
        """A harness says that a call is over: which? By its id, else the first of that tool; None if none runs."""
        key = id if id is not None and id in self.running else None
        if key is None and tool is not None:
            key = next((key for key, call in self.running.items() if call.tool == tool), None)
        return None if key is None else self.running.pop(key)

    def names(self) -> list[str]:
        """Which tools run now?"""
        return [call.tool for call in self.running.values()]

    def clear(self) -> None:
        """The next segment has come, with all results."""
        self.running.clear()

    def _name(self, tool: str) -> None:
        if len(self.called) < MOST_KEPT:
            self.called.append(tool)


def joined(tools: Sequence[str]) -> str:
    """Under which name are the times of tools that run at once learned?"""
    return "+".join(sorted(tools))[:NAME_LENGTH]


def parts(name: str) -> list[str]:
    """Which tools are joined in a name? One, for a name that is not joined."""
    return name.split("+")
