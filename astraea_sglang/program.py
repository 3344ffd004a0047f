"""What is a program? The vocabulary: a program is a chain (or tree) of segments with tool calls between them."""

from dataclasses import dataclass, field
from enum import StrEnum

from astraea_sglang.actions import KvAction
from astraea_sglang.beginnings import Prompt
from astraea_sglang.hints import Hints
from astraea_sglang.history import END, Rest
from astraea_sglang.order import Tenure, Waiting
from astraea_sglang.toolcalls import ToolCalls


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
    declared: str | None  # its node of the declared structure
    node: str  # the same as learned history knows it
    arrived: float  # seconds
    prompt_tokens: int
    max_new_tokens: int
    read: Prompt | None  # its prompt, if its program is found by that
    tier: int  # of the user's own priority, 0 first
    known: int  # tokens of it that were computed before: those the radix tree lacks are computed again
    output: float = 1.0  # tokens it will generate, predicted when it arrived
    later: Rest = END  # what its program does after it, predicted when it arrived
    view: Waiting | None = None  # what an order sees of it, made when it is first planned
    priced: int = -1  # which prices the view was made with
    alone: float = 0.0  # seconds that this segment and what follows it take alone, at those prices
    generated: int = 0  # tokens
    matched: bool = False  # it has been looked up in the radix tree
    running: bool = False
    retracted: bool = False

    @property
    def length(self) -> int:
        """How long is its KV now? Prompt and generated tokens."""
        return self.prompt_tokens + self.generated


def program_key(id: str, owner: str = "") -> str:
    """Under what does the table know a program that a client names? Ids are printable, NUL is not."""
    return f"{id}\0{owner}" if owner else id


class Waits:
    """How long has something waited, in seconds, while any of its segments did? Parallel ones wait once."""

    __slots__ = ("seconds", "segments", "since")

    def __init__(self) -> None:
        self.segments = 0  # that wait now
        self.seconds = 0.0  # without the wait that goes on now
        self.since = 0.0

    def change(self, by: int, now: float) -> None:
        """So many segments more wait from now on."""
        if self.segments:
            self.seconds += now - self.since
        self.segments += by
        self.since = now

    def until(self, now: float) -> float:
        """The wait that goes on included."""
        return self.seconds + (now - self.since if self.segments else 0.0)


@dataclass(slots=True, eq=False)
class Run:
    """A program and its sub-agents: one age, one wait and one service. None can lend its age without paying for it."""

    born: float  # seconds
    waits: Waits = field(default_factory=Waits)
    alone: float = 0.0  # seconds its segments so far would have taken alone on this engine
    live: int = 0  # segments
    touched: float = 0.0  # seconds: when a segment of any of them came or ended last


@dataclass(slots=True, eq=False)
class Program:
    """One agent run. Only ProgramTable changes it. Times in seconds of the table's clock."""

    key: str  # under which the table knows it: no client can say that of a nameless one
    id: str
    program_class: str
    arrived: float
    run: Run  # a sub-agent's is its parent's
    parent_id: str | None = None
    owner: str = ""  # a digest of the API key that its requests come with
    identity: str = ""  # by which convention it was found, such as "header x-session-id"; "prompt": by its path
    nameless: bool = False  # no client named it
    anonymous: bool = False  # nameless, and nothing tells yet that more comes: one segment, then done
    structure_ref: str | None = None  # digest of the structure it declared
    node: str | None = None  # of the segment that arrived last
    later: Rest = END  # what it does after the segment that arrived last, predicted then
    visits: dict[str, int] = field(default_factory=dict)  # segments at each declared node
    visited: dict[str, int | None] = field(default_factory=dict)  # the index of the last one there, if it is told
    segments: int = 0  # arrived so far
    started: bool = False  # one of them has run
    finished_segments: int = 0
    generated: int = 0  # tokens, of finished segments
    prefilled: int = 0  # tokens computed, recomputed ones included
    context: int = 0  # tokens: what its next segment will find of it, if nothing is evicted
    resident: int = 0  # of those, tokens in the radix tree
    tails: list[int] = field(default_factory=list)  # radix tree nodes at which its paths end, latest last
    first_prompt: int = 0  # tokens of its first segment's prompt
    shared: int = 0  # tokens of its prompt that were resident before it existed: others use them, too
    tenant: str = ""  # whose it is, if the server tells its clients apart
    back: float = 0.0  # when its tool is likely back, seconds: as of the last look at it
    pinned: bool = False  # its path is locked in the radix tree
    asked: KvAction | None = None  # what its client wants done with its KV in the next pause
    kept_until: float = 0.0  # seconds: until then it counts as wanted at once, because its client said so
    level: int = 0  # queue of the Stateful-MLFQ
    tenure: Tenure = field(default_factory=Tenure)  # its place, under Progress-TTL
    calls: ToolCalls = field(default_factory=ToolCalls)
    next_tool: str | None = None
    expected_tool_s: float | None = None
    closing: str | None = None  # why it is done once no segment lives: "final", "ended" or "answered"
    generating: int = 0  # tokens of live segments so far
    waits: Waits = field(default_factory=Waits)
    idle_since: float | None = None
    due: bool = False  # paused, and likely back before the pool could be refilled: as of due_seen
    due_seen: float = float("-inf")
    live: dict[str, Segment] = field(default_factory=dict)
    running: int = 0  # live segments that are in a batch

    @property
    def state(self) -> State:
        """Where is it?"""
        if self.live:
            return State.RUNNING if self.running else State.READY
        return State.DONE if self.closing else State.TOOL_WAIT

    @property
    def attained(self) -> int:
        """How much service has it had? Tokens prefilled and generated, of live segments too."""
        return self.prefilled + self.generated + self.generating
