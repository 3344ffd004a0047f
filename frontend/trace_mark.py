"""Will a program do the same from here as from there? What its future depends on, in a form that compares."""

import types
from contextlib import _GeneratorContextManager
from typing import Any

from astraea_sglang.frontend.lang import SglExpr, choices
from astraea_sglang.frontend.trace_run import Run
from astraea_sglang.frontend.trace_state import TracedExecutor, TracedGroup, TracedState
from astraea_sglang.frontend.trace_symbol import SCALARS, Symbol
from astraea_sglang.frontend.trace_values import enclosed, is_expr

FIXED = (types.BuiltinFunctionType, types.ModuleType, type)  # what no program changes
PASSING = {"node_id", "prev_node", "pid"}  # of an expression: not what it does


def mark(run: Run, frame: types.FrameType) -> tuple[Any, Any]:
    """What does the rest of a run depend on, at a statement of the program's function; and how did it come there?

    Values that are not known count by the order in which they are found. The second part is what the structure needs.
    """
    found = _Found(run)
    state = (
        frame.f_lasti,
        tuple((name, found.of(value)) for name, value in sorted(frame.f_locals.items())),
        tuple((loop.lines, loop.left is not None and (loop.round, found.of(loop.left))) for loop in run.loops),
        tuple(found.of(executor) for executor in run.states.values()),
        frozenset(key for key in run.handed if key not in run.made_here),
    )
    return (state, found.facts()), tuple((path, one.timeline.mark(run.loops)) for path, one in run.states.items())


class _Found:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.values: dict[int, int] = {}
        self.places: dict[int, int] = {}  # of objects that may be found again, by id

    def of(self, value: Any) -> Any:
        self.run.spend()
        kind = type(value)
        if kind is Symbol:
            return value._plain, self.key(value._key)
        if kind in SCALARS:
            return kind, value
        if value is self.run:
            return "run"
        if kind is range:
            return range, value
        if kind is types.BuiltinFunctionType and type(value.__self__) in (list, dict, set):
            return "method", value.__name__, self.of(value.__self__)
        if kind in FIXED:
            return "fixed", id(value)
        if id(value) in self.places:
            return "found", self.places[id(value)]
        self.places[id(value)] = len(self.places)
        return self._parts(value)

    def _parts(self, value: Any) -> Any:
        kind = type(value)
        if kind in (list, tuple):
            return kind, id(value) in self.run.handed, *map(self.of, value)
        if kind is dict:
            return dict, id(value) in self.run.handed, *((self.of(key), self.of(part)) for key, part in value.items())
        if kind is TracedExecutor:
            alive = self.run.states.get(value.timeline.path) is value
            variables = sorted(value.variables.items(), key=lambda item: str(item[0]))  # a join adds them in any order
            values = [(name, self.of(one)) for name, one in variables]
            return "executor", value.timeline.path, alive, value.text_, *values
        if kind is TracedState:
            return "state", self.of(value.stream_executor)
        if kind is TracedGroup:
            return "group", self.of(value.states), self.of(value.src_state)
        if kind.__module__ == choices.__name__:
            return "fixed", id(value)
        if is_expr(value):
            return kind, *((name, self.of(part)) for name, part in vars(value).items() if name not in PASSING)
        if kind.__module__ == SglExpr.__module__:
            return kind, *((name, self.of(part)) for name, part in vars(value).items())
        if kind is types.FunctionType:
            if value.__code__ not in self.run.shared.sources.codes:
                return "fixed", id(value)
            return value.__code__, *map(self.of, enclosed(value)), self.of(value.__defaults__)
        if kind is types.MethodType:
            return "method", id(value.__func__), self.of(value.__self__)
        if self.run.is_made(value) or kind in (types.GeneratorType, _GeneratorContextManager):
            return "unlike", object()
        return "around", id(value)  # which the program does not look into

    def key(self, key: Any) -> Any:
        if type(key) is not tuple:
            return key
        self.run.spend()
        if key and key[0] == "value":
            return "value", self.values.setdefault(key[1], len(self.values)), key[2]
        return tuple(map(self.key, key))

    def facts(self) -> frozenset[Any]:
        live = set(self.values)
        told = set()
        for fact, true in self.run.facts.items():
            about = set(_values(fact))
            self.run.spend(1 + len(about))
            if about & live:
                told.add((self.key(fact) if about <= live else fact, true))
        return frozenset(told)


def _values(key: Any) -> list[int]:
    if not isinstance(key, tuple):
        return []
    return [key[1]] if key and key[0] == "value" else [n for part in key for n in _values(part)]
