"""Which program does a request belong to? One run of an agent program, as its client sees it."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from types import CodeType
from typing import Any, Protocol

from astraea_sglang.hints import NAME_LENGTH, Hints, payload
from astraea_sglang.structure import ProgramStructure, digest


@dataclass(frozen=True, slots=True)
class Pause:
    """What does the program do between two of its generations? It runs `tool`, and whatever tools follow that one."""

    tool: str
    expected_s: float | None  # seconds for all of these tools; None when one of them is unknown


@dataclass(frozen=True, slots=True)
class Traced:
    """What can a program's function do, as far as can be told ahead? Without a structure, `why` says why not.

    `nodes` names the structure's node of each place in the function's `code`: of its requests and tool calls.
    """

    code: CodeType
    structure: ProgramStructure | None = None
    why: str | None = None
    nodes: Mapping[Any, str] = field(default_factory=dict)
    ref: str | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ref", digest(self.structure) if self.structure else None)


class State(Protocol):
    """One thread of a program: its root, or a fork."""

    def end(self) -> None:
        """Take no more nodes; those already queued still run."""
        ...


class ProgramRun:
    """Whose requests are these? One identity and one count of segments, shared by a program and all its forks.

    `on_end(run)` is called once, when the program's function has returned or raised and no state of it runs any more.
    `traced` is what the server is told of the function, if anything.
    """

    def __init__(
        self,
        name: str,
        parent: "ProgramRun | None",
        on_end: Callable[["ProgramRun"], None],
        traced: Traced | None = None,
    ) -> None:
        self.traced = traced
        self.id = uuid.uuid4().hex
        self.name = name[:NAME_LENGTH]
        self.parent_id = parent.id if parent else None
        self._on_end = on_end
        self._lock = Lock()  # forks run in threads of their own
        self._segments = 0
        self._declared = False
        self._open: set[State] = set()
        self._returned = False

    def next_segment(self) -> int:
        """Which segment starts now? Counts from 0, in the order in which the forks' generations start."""
        with self._lock:
            self._segments += 1
            return self._segments - 1

    def opened(self, state: State) -> None:
        """Tell that `state` takes nodes of this program from now on."""
        with self._lock:
            self._open.add(state)

    def closed(self, state: State) -> None:
        """Tell that `state` has run its last node. Without effect when it was told before."""
        with self._lock:
            over = self._returned and self._open == {state}
            self._open.discard(state)
        if over:
            self._on_end(self)

    def returned(self) -> None:
        """Tell that the program's function has returned or raised: ends the forks that nobody joined."""
        with self._lock:
            self._returned = True
            left = list(self._open)
        if not left:
            self._on_end(self)
        for state in left:
            state.end()

    def fields(self, segment: int, pause: Pause | None, node: str | None = None) -> dict[str, Any]:
        """What does a request say of its program? `session_id`, and `kv_hints` with one `astraea.program` action.

        The first that is asked for declares the program's structure, later ones refer to it.
        """
        with self._lock:
            first, self._declared = not self._declared, True
        hints = Hints(
            program_id=self.id,
            program_class=self.name,
            segment=segment,
            next_tool=pause.tool if pause else None,
            expected_tool_s=pause.expected_s if pause else None,
            parent_id=self.parent_id,
            structure=self.traced.structure if self.traced and first else None,
            structure_ref=self.traced.ref if self.traced and not first else None,
            node=node,
        )
        action = {
            "action_id": "0",
            "action_type": "astraea.program",
            "action_version": "1",
            "payload": payload(hints),
        }
        envelope = {"protocol_version": "1", "message_id": uuid.uuid4().hex, "actions": [action]}
        return {"session_id": self.id, "kv_hints": envelope}
