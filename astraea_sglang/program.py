"""What is a program? The vocabulary: a program is a chain (or tree) of segments with tool calls between them."""

from dataclasses import dataclass, field
from enum import StrEnum

from astraea_sglang.hints import Hints


class State(StrEnum):
    """Where is a program? READY -> RUNNING -> TOOL_WAIT -> READY ... -> DONE."""

    READY = "READY"  # a segment of it waits in the queue, none runs
    RUNNING = "RUNNING"  # a segment of it is in a batch
    TOOL_WAIT = "TOOL_WAIT"  # no segment: a tool runs, or its client thinks
    DONE = "DONE"


@dataclass(slots=True, eq=False)
class Segment:
    """One uninterrupted generation of a program. Only ProgramTable changes it."""

    rid: str
    program: "Program"
    hints: Hints
    arrived: float  # seconds
    prompt_tokens: int
    max_new_tokens: int
    generated: int = 0  # tokens
    resident: int = 0  # tokens of it that the radix tree held when last looked up
    matched: bool = False  # it has been looked up
    running: bool = False

    @property
    def length(self) -> int:
        """How long is its KV now? Prompt and generated tokens."""
        return self.prompt_tokens + self.generated


@dataclass(slots=True, eq=False)
class Program:
    """One agent run. Only ProgramTable changes it. Times in seconds of the table's clock."""

    id: str
    program_class: str
    arrived: float
    parent_id: str | None = None
    anonymous: bool = False  # a request that named no program: one segment, then done
    segments: int = 0  # arrived so far
    finished_segments: int = 0
    generated: int = 0  # tokens, of finished segments
    prefilled: int = 0  # tokens computed, recomputed ones included
    context: int = 0  # tokens: what its next segment will find of it, if nothing is evicted
    shared: int = 0  # tokens of its prompt that were resident before it existed: others use them, too
    level: int = 0  # queue of the Stateful-MLFQ
    next_tool: str | None = None
    expected_tool_s: float | None = None
    closing: str | None = None  # why it is done once no segment lives: "final" segment arrived, or "ended" from outside
    waited: float = 0.0  # seconds, without the wait that goes on now
    waiting_since: float | None = None
    idle_since: float | None = None
    live: dict[str, Segment] = field(default_factory=dict)
    running: int = 0  # live segments that are in a batch

    @property
    def key(self) -> str:
        """Under what does the table know it? No client can name an anonymous program: ids are printable, NUL is not."""
        return "\0" + self.id if self.anonymous else self.id

    @property
    def state(self) -> State:
        """Where is it?"""
        if self.live:
            return State.RUNNING if self.running else State.READY
        return State.DONE if self.closing else State.TOOL_WAIT

    @property
    def attained(self) -> int:
        """How much service has it had? Tokens prefilled and generated, of live segments too."""
        return self.prefilled + self.generated + sum(segment.generated for segment in self.live.values())

    def wait(self, now: float) -> float:
        """W(R): for how many seconds have its segments waited in the queue? Parallel segments wait once, not each."""
        return self.waited + (now - self.waiting_since if self.waiting_since is not None else 0.0)
