"""How does a program run its nodes? SGLang's executor of one state, with tool calls and an eye on what follows."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from itertools import chain
from threading import Event
from typing import Any

from astraea_sglang.errors import AstraeaError, HintError
from astraea_sglang.frontend.lang import (
    SglCommitLazy,
    SglConcateAndAppend,
    SglExpr,
    SglExprList,
    SglGen,
    SglSelect,
    SglVariable,
    StreamExecutor,
)
from astraea_sglang.frontend.program import Pause, ProgramRun
from astraea_sglang.hints import NAME_LENGTH

logger = logging.getLogger(__name__)
current_run: ContextVar[ProgramRun | None] = ContextVar("astraea_program", default=None)

REQUESTS = (SglGen, SglSelect, SglCommitLazy)  # nodes that the endpoint sends to the server
WAITS = (*REQUESTS, SglConcateAndAppend)  # nodes that end a pause between two generations, or make its length unknown


class SglTool(SglExpr):
    """A tool call among the nodes of a program; built by `tool`."""

    def __init__(
        self, name: str, fn: Callable[..., object], args: tuple[object, ...], expects: float | None, var: str
    ) -> None:
        super().__init__()
        self.name, self.fn, self.args, self.expects, self.var = name, fn, args, expects, var

    def __repr__(self) -> str:
        return f"Tool({self.name!r})"


def tool(
    name: str, fn: Callable[..., object], *args: object, expects: float | None = None, var: str | None = None
) -> SglTool:
    """What does `fn(*args)` say? Runs it when the state reaches this node, appends str(result), keeps that as s[var].

    `expects` is how long the call takes, in seconds, if known; `var` is the tool's name unless given. An argument
    `variable("x")` is read when the node runs. If `fn` raises, the text is `Error: ...`, for the model to read, and
    `s.get_meta_info(var)["error"]` says the same (None otherwise).

    The server is told of the tool with the generation before it, so the tool must be queued when that starts: true
    within one expression (`gen("q") + tool(...)`), never once the program has waited for the generation (`s["q"]`),
    and a matter of luck in between. Raises HintError for a name that is not 1 to 128 printable characters, or a bad
    `expects`.
    """
    if not (1 <= len(name) <= NAME_LENGTH and name.isprintable()):
        raise HintError(f"tool name {name[:NAME_LENGTH]!r}: give it 1 to {NAME_LENGTH} printable characters")
    if expects is not None and not (math.isfinite(expects) and expects >= 0):
        raise HintError(f"tool {name!r}: expects={expects} is no duration; give seconds, such as expects=0.5")
    return SglTool(name, fn, args, expects, var or name)


def variable(name: str) -> SglVariable:
    """What is s[name] when a tool runs? Stands for it in `tool(...)`, where s[name] would make the program wait."""
    return SglVariable(name, source=None)


class ProgramExecutor(StreamExecutor):
    """Runs the nodes of one state; knows its program, and what is queued behind the generation that runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.program: ProgramRun | None = None
        self.caller = current_run.get()  # a streamed program's function runs where this is unknown
        self.segment = 0
        self.pause: Pause | None = None  # what follows the current generation, as far as it is queued
        self._ahead: deque[Any] = deque()  # the rest of the current expression
        self._ended = False
        super().__init__(*args, **kwargs)

    def enter(self, program: ProgramRun) -> None:
        """Make this a state of `program`. Comes before its first node."""
        self.program = program
        program.opened(self)

    def fork(self, size: int = 1, position_ids_offset: list[int] | None = None) -> list[StreamExecutor]:
        forks = super().fork(size, position_ids_offset)
        for state in forks:
            if self.program and isinstance(state, ProgramExecutor):
                state.enter(self.program)
        return forks

    def end(self) -> None:
        if self._ended:  # SGLang would queue a second end, which nobody takes, so that text() waits for ever
            return
        self._ended = True
        super().end()
        if not self.use_thread:
            self._close()

    def _thread_worker_func(self) -> None:
        try:
            super()._thread_worker_func()
        finally:
            self._close()

    def _close(self) -> None:
        if self.program:
            self.program.closed(self)

    def _init_var_event(self, expr: SglExpr) -> None:
        if isinstance(expr, SglTool):
            self.variable_event[expr.var] = Event()
            if self.stream_var_event is not None:
                self.stream_var_event[expr.var] = Event()
        else:
            super()._init_var_event(expr)

    def _execute(self, other: SglExpr) -> None:
        if isinstance(other, SglExprList):
            self._ahead = deque(_leaves(other))
            while self._ahead:
                self._execute(self._ahead.popleft())
        elif isinstance(other, SglTool):
            self._execute_tool(other)
        else:
            if self.program and isinstance(other, REQUESTS):
                self.segment, self.pause = self.program.next_segment(), self._next_pause()
            super()._execute(other)

    def _next_pause(self) -> Pause | None:
        queued: list[Any] = []
        if self.use_thread:
            with self.queue.mutex:
                queued = list(self.queue.queue)
        tools: list[SglTool] = []
        for node in chain(self._ahead, *map(_leaves, queued)):
            if isinstance(node, SglTool):
                tools.append(node)
            elif isinstance(node, WAITS):
                break
        if not tools:
            return None
        known = [node.expects for node in tools if node.expects is not None]
        return Pause(tools[0].name, sum(known) if len(known) == len(tools) else None)

    def _execute_tool(self, node: SglTool) -> None:
        # A program that the tool runs is this one's child. No reset: this thread is the state's own.
        current_run.set(self.program)
        args = [self._value(node, arg) for arg in node.args]
        error = None
        try:
            text = str(node.fn(*args))
        except Exception as failure:
            logger.debug("tool %r failed", node.name, exc_info=True)
            error = f"{type(failure).__name__}: {failure}"
            text = f"Error: {error}"
        self._execute_fill(text)
        self.variables[node.var] = text
        self.meta_info[node.var] = {"tool": node.name, "error": error}
        self.variable_event[node.var].set()
        if self.stream_var_event is not None and self.stream_text_event is not None:
            self.stream_var_event[node.var].set()
            self.stream_text_event.set()

    def _value(self, node: SglTool, arg: object) -> object:
        if not isinstance(arg, SglVariable):
            return arg
        if arg.name not in self.variables:
            known = ", ".join(sorted(map(str, self.variables))) or "none"
            raise AstraeaError(f"tool {node.name!r} reads {arg.name!r}, which is not set by then; set are: {known}")
        return self.variables[arg.name]


def _leaves(expr: Any) -> Iterator[Any]:
    """Which nodes does an expression run, in order? Passes on strings, and the None that ends a queue."""
    if isinstance(expr, SglExprList):
        for part in expr.expr_list:
            yield from _leaves(part)
    else:
        yield expr
