"""What does a traced program do with its states? Stand-ins for SGLang's, which note every node and send nothing."""

from typing import Any, Protocol

from astraea_sglang.frontend.executor import REQUESTS, leaves
from astraea_sglang.frontend.executor_tools import SglParallel, SglTool
from astraea_sglang.frontend.lang import (
    ProgramState,
    ProgramStateGroup,
    SglCommitLazy,
    SglConcateAndAppend,
    SglConstantText,
    SglGen,
    SglImage,
    SglRoleBegin,
    SglRoleEnd,
    SglSelect,
    SglSeparateReasoning,
    SglVarScopeBegin,
    SglVarScopeEnd,
    SglVideo,
)
from astraea_sglang.frontend.run_place import Lines, Path
from astraea_sglang.frontend.trace_path import About, Loop, Timeline, Token, Ways
from astraea_sglang.frontend.trace_symbol import Decider, Symbol, Untraceable

TEXTS = (
    str, Symbol, SglConstantText, SglRoleBegin, SglRoleEnd, SglImage, SglVideo, SglConcateAndAppend, SglVarScopeBegin,
)  # fmt: skip


class Recorder(Decider, Protocol):
    """The run that states belong to."""

    ways: Ways
    loops: list[Loop]
    states: dict[Path, "TracedExecutor"]  # that may still be used
    limit: int | None  # tokens of a generation that gives none

    def fresh(self, among: tuple[str, ...] | None = None, *, text: bool = False) -> Symbol:
        """A value that is not known yet; a text, or one of `among`, if so told."""
        ...

    def lines(self) -> Lines:
        """Which lines of the program led here?"""
        ...


class TracedExecutor:
    """In the place of a state's StreamExecutor: notes what it is given. `text` is whether it has any: 0, 1, or None."""

    chat_template = backend = arguments = property(lambda self: self.run.give_up("looks into the state's executor"))
    stream = property(lambda self: self.run.give_up("reads the text as it is streamed"))

    def __init__(self, run: Recorder, path: Path, last: Token) -> None:
        self.run = run
        self.timeline = Timeline(run.ways, path, last, run.loops if path else ())
        self.variables: dict[Any, Any] = {}
        self.text_: bool | None = False
        if path in run.states:
            run.give_up("forks again before the forks of the last time have joined")
        run.states[path] = self

    def submit(self, expr: Any) -> None:
        if self.run.states.get(self.timeline.path) is not self:
            self.run.give_up("uses a fork that has joined")
        lines, nth = self.run.lines(), 0
        for leaf in leaves(expr):
            if isinstance(leaf, REQUESTS):
                limit = leaf.sampling_params.max_new_tokens if isinstance(leaf, SglGen) else 0
                limit = self.run.limit if limit is None else limit
                name = getattr(leaf, "name", None)
                if isinstance(name, Symbol):
                    self.run.give_up("names a variable by a value")
                shown = "prefix" if isinstance(leaf, SglCommitLazy) else name or ""
                self._node(lines, nth, leaf, About(shown, limit=limit if isinstance(limit, int) else None))
                if not isinstance(leaf, SglCommitLazy):
                    choices = leaf.choices if isinstance(leaf, SglSelect) else None
                    known = isinstance(choices, list | tuple) and all(isinstance(choice, str) for choice in choices)
                    self.variables[name] = self.run.fresh(tuple(choices) if known and choices else None, text=True)
            elif isinstance(leaf, SglTool | SglParallel):
                if not isinstance(leaf.name, str):
                    self.run.give_up("calls a tool whose name is a value")
                name = leaf.tools[0].var if len(leaf.tools) == 1 else leaf.name
                self._node(lines, nth, leaf, About(name, tool=leaf.name, expects=leaf.expects))
                for call in leaf.tools:
                    self.variables[call.var] = self.run.fresh(text=True)
            elif isinstance(leaf, SglVarScopeEnd):
                self.variables[leaf.name] = self.run.fresh(text=True)
            elif isinstance(leaf, SglSeparateReasoning):
                for name in (leaf.name, (leaf.name or "").removesuffix("_reasoning_content")):
                    self.variables[name] = self.run.fresh()
            elif not isinstance(leaf, TEXTS):
                raise TypeError(f"{type(leaf).__name__} cannot be added to a state")
            elif isinstance(leaf, str | SglConstantText) and (leaf if isinstance(leaf, str) else leaf.value):
                self.text_ = True
            nth += isinstance(leaf, (*REQUESTS, SglTool, SglParallel))
            self.text_ = self.text_ or None

    def _come(self) -> None:
        try:
            self.timeline.come(self.run.loops)
        except Untraceable as reason:
            self.run.give_up_all(str(reason))

    def _node(self, lines: Lines, nth: int, expr: Any, about: About) -> None:
        self._come()
        token = Token(type(expr).__name__, self.timeline.path, lines, nth, getattr(expr, "name", None) or "")
        self.run.ways.known(token, about)
        self.timeline.step(token)

    def fork(self, size: Any = 1, position_ids_offset: Any = None) -> list["TracedExecutor"]:
        if isinstance(size, Symbol):
            self.run.give_up("forks as often as a value says")
        lines, timeline, ways = self.run.lines(), self.timeline, self.run.ways
        self._come()
        before = timeline.last
        token = Token("fork", timeline.path, lines)
        if size > 1 and self.text_ is not False:
            self.submit(SglCommitLazy())
            if self.text_ is None:
                ways.link(before, token)
        timeline.step(token)
        if ways.forks.setdefault(token, size) != size:
            self.run.give_up(f"forks {size} ways, and {ways.forks[token]} ways at another time")
        own = token._replace(kind="own")
        forks = []
        for i in range(size):
            branch = token._replace(kind="branch", nth=i)
            ways.link(token, branch)
            fork = TracedExecutor(self.run, (*timeline.path, (lines, i)), branch)
            fork.variables, fork.text_ = dict(self.variables), self.text_
            forks.append(fork)
        timeline.step(own)
        return forks

    def join(self, forks: list["TracedExecutor"]) -> None:
        """The forks are over, and this state goes on with what they found."""
        going = [fork for fork in forks if self.run.states.get(fork.timeline.path) is fork]
        if not going:
            return
        self._come()
        token = Token("join", self.timeline.path, self.run.lines())
        self.run.ways.joins[token] = Token("fork", self.timeline.path, going[0].timeline.path[-1][0])
        for fork in going:
            fork.timeline.end(token)
            del self.run.states[fork.timeline.path]
        self.timeline.step(token)

    def get_var(self, name: Any) -> Any:
        return self.variables[name]

    def set_var(self, name: Any, value: Any) -> None:
        self.variables[name] = value

    def get_meta_info(self, name: Any, timeout: Any = None) -> Symbol:
        return self.run.fresh()

    def text(self) -> Any:
        return self.run.fresh(text=True) if self.text_ is not False else ""

    def messages(self) -> Symbol:
        return self.run.fresh()

    def error(self) -> Symbol:
        return self.run.fresh()

    def sync(self) -> None:
        pass

    def end(self) -> None:
        pass


class TracedState(ProgramState):
    """In the place of a program's state."""

    def fork(self, size: Any = 1, position_ids_offset: Any = None) -> ProgramStateGroup:
        executor: Any = self.stream_executor
        forks: Any = [TracedState(fork) for fork in executor.fork(size, position_ids_offset)]
        return TracedGroup(forks, self)

    def __contains__(self, name: object) -> bool:
        executor: Any = self.stream_executor  # really: whether the state has come that far by now
        return name in executor.variables and bool(executor.run.fresh())

    def __repr__(self) -> str:
        executor: Any = self.stream_executor
        return executor.run.give_up("prints a state in code that is not traced")

    def __del__(self) -> None:
        pass


class TracedGroup(ProgramStateGroup):
    """In the place of a group of forks."""

    def join(self, mode: str = "gather_variable") -> None:
        super().join(mode)
        state: Any = self.src_state
        state.stream_executor.join([fork.stream_executor for fork in self.states])
