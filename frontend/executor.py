"""How does a program run its nodes? SGLang's executor of one state, with tool calls and an eye on what follows."""

from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from itertools import chain
from threading import Event
from typing import Any

from astraea_sglang.errors import AstraeaError
from astraea_sglang.frontend.executor_tools import SglParallel, SglTool, results
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
from astraea_sglang.frontend.run import Pause, ProgramRun
from astraea_sglang.frontend.run_place import Lines, Path, Place, lines_of

current_run: ContextVar[ProgramRun | None] = ContextVar("astraea_program", default=None)

REQUESTS = (SglGen, SglSelect, SglCommitLazy)  # nodes that the endpoint sends to the server
WAITS = (*REQUESTS, SglConcateAndAppend)  # nodes that end a pause between two generations, or make its length unknown


class _Placed(SglExpr):
    """An expression on its way to the state's thread, with the lines that wrote it."""

    def __init__(self, expr: Any, lines: Lines | None) -> None:
        super().__init__()
        self.expr, self.lines = expr, lines


class ProgramExecutor(StreamExecutor):
    """Runs the nodes of one state; knows its program, and what is queued behind the generation that runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.program: ProgramRun | None = None
        self.caller = current_run.get()  # a streamed program's function runs where this is unknown
        self.segment = 0
        self.pause: Pause | None = None  # what follows the current generation, as far as it is queued
        self.node: str | None = None  # of the program's structure, at which the current generation is
        self.path: Path | None = ()  # None where it is not known
        self._lines: Lines | None = None  # that wrote the current expression
        self._step = 0  # requests and tool calls of the current expression so far
        self._ahead: deque[Any] = deque()  # the rest of the current expression
        self._ended = False
        super().__init__(*args, **kwargs)

    def enter(self, program: ProgramRun) -> None:
        """Make this a state of `program`. Comes before its first node."""
        self.program = program
        program.opened(self)

    def fork(self, size: int = 1, position_ids_offset: list[int] | None = None) -> list[StreamExecutor]:
        self.sync()  # SGLang sends the prefix for the forks if it sees text by now: always, in place of by luck
        lines = self._written()
        forks = super().fork(size, position_ids_offset)
        for i, state in enumerate(forks):
            if self.program and isinstance(state, ProgramExecutor):
                state.path = None if self.path is None or lines is None else (*self.path, (lines, i))
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

    def submit(self, expr: Any) -> None:
        lines = self._written()
        super().submit(expr if lines is None else _Placed(expr, lines))

    def _written(self) -> Lines | None:
        traced = self.program and self.program.traced
        return lines_of(traced.code) if traced else None

    def _init_var_event(self, expr: SglExpr) -> None:
        if isinstance(expr, _Placed):
            self._init_var_event(expr.expr)
        elif isinstance(expr, SglTool | SglParallel):
            for call in expr.tools:
                self.variable_event[call.var] = Event()
                if self.stream_var_event is not None:
                    self.stream_var_event[call.var] = Event()
        else:
            super()._init_var_event(expr)

    def _execute(self, other: SglExpr) -> None:
        if isinstance(other, _Placed):
            self._lines, self._step = other.lines, 0
            self._execute(other.expr)
            self._lines = None
        elif isinstance(other, SglExprList):
            self._ahead = deque(leaves(other))
            while self._ahead:
                self._execute(self._ahead.popleft())
        elif isinstance(other, SglTool | SglParallel):
            self._step += 1
            self._execute_tools(other)
        else:
            if self.program and isinstance(other, REQUESTS):
                self.segment, self.pause = self.program.next_segment(), self._next_pause()
                self.node = self._node(other)
                self._step += 1
            super()._execute(other)

    def _node(self, request: SglExpr) -> str | None:
        if self.path is None or self._lines is None or self.program is None or self.program.traced is None:
            return None
        name = getattr(request, "name", None) or ""
        place = Place(type(request).__name__, self.path, self._lines, self._step, name)
        return self.program.traced.nodes.get(place)

    def _next_pause(self) -> Pause | None:
        queued: list[Any] = []
        if self.use_thread:
            with self.queue.mutex:
                queued = list(self.queue.queue)
        tools: list[SglTool | SglParallel] = []
        for node in chain(self._ahead, *map(leaves, queued)):
            if isinstance(node, SglTool | SglParallel):
                tools.append(node)
            elif isinstance(node, WAITS):
                break
        if not tools:
            return None
        known = [node.expects for node in tools if node.expects is not None]
        return Pause(tools[0].name, sum(known) if len(known) == len(tools) else None)

    def _execute_tools(self, node: SglTool | SglParallel) -> None:
        # A program that the tool runs is this one's child. No reset: this thread is the state's own.
        current_run.set(self.program)
        arguments = [[self._value(call, arg) for arg in call.args] for call in node.tools]
        for call, (text, error) in zip(node.tools, results(node, arguments), strict=True):
            self._execute_fill(text)
            self.variables[call.var] = text
            self.meta_info[call.var] = {"tool": call.name, "error": error}
            self.variable_event[call.var].set()
            if self.stream_var_event is not None and self.stream_text_event is not None:
                self.stream_var_event[call.var].set()
                self.stream_text_event.set()

    def _value(self, node: SglTool, arg: object) -> object:
        if not isinstance(arg, SglVariable):
            return arg
        if arg.name not in self.variables:
            known = ", ".join(sorted(map(str, self.variables))) or "none"
            raise AstraeaError(f"tool {node.name!r} reads {arg.name!r}, which is not set by then; set are: {known}")
        return self.variables[arg.name]


def leaves(expr: Any) -> Iterator[Any]:
    """Which nodes does an expression run, in order? Passes on strings, and the None that ends a queue."""
    if isinstance(expr, _Placed):
        expr = expr.expr
    if isinstance(expr, SglExprList):
        for part in expr.expr_list:
            yield from leaves(part)
    else:
        yield expr
