"""Will a program do the same from here as from there? What its future depends on, in a form that compares."""

import types
from typing import Any

from astraea_sglang.frontend.lang import SglExpr, choices
from astraea_sglang.frontend.trace_run import Run
from astraea_sglang.frontend.trace_state import TracedExecutor, TracedGroup, TracedState
from astraea_sglang.frontend.trace_symbol import SCALARS, Symbol

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
    )
    return (state, found.facts()), tuple((path, one.timeline.mark(run.loops)) for path, one in run.states.items())


class _Found:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.values: dict[int, int] = {}
        self.places: dict[int, int] = {}  # of objects that may be found again, by id

    def of(self, value: Any) -> Any:
        if isinstance(value, Symbol):
            return self.key(value._key)
        if isinstance(value, SCALARS):
            return type(value), value
        if value is self.run:
            return "run"
        if isinstance(value, (range, *FIXED)):
            return "fixed", value
        if id(value) in self.places:
            return "found", self.places[id(value)]
        self.places[id(value)] = len(self.places)
        return self._parts(value)

    def _parts(self, value: Any) -> Any:
        kind = type(value)
        if kind in (list, tuple):
            return kind, *map(self.of, value)
        if kind is dict:
            return dict, *((self.of(key), self.of(part)) for key, part in value.items())
        if isinstance(value, TracedExecutor):
            alive = self.run.states.get(value.timeline.path) is value
            variables = sorted(value.variables.items(), key=lambda item: str(item[0]))  # a join adds them in any order
            values = [(name, self.of(one)) for name, one in variables]
            return "executor", value.timeline.path, alive, value.text_, *values
        if isinstance(value, TracedState):
            return "state", self.of(value.stream_executor)
        if isinstance(value, TracedGroup):
            return "group", self.of(value.states), self.of(value.src_state)
        if kind.__module__ == choices.__name__:
            return "fixed", value
        if isinstance(value, SglExpr) or kind.__module__ == SglExpr.__module__:
            return kind, *((name, self.of(part)) for name, part in vars(value).items() if name not in PASSING)
        if isinstance(value, types.FunctionType):
            if value.__code__ not in self.run.shared.sources.codes:
                return "fixed", value
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return value.__code__, *map(self.of, cells), self.of(value.__defaults__)
        return "unlike", object()

    def key(self, key: Any) -> Any:
        if not isinstance(key, tuple):
            return key
        if key and key[0] == "value":
            return "value", self.values.setdefault(key[1], len(self.values)), key[2]
        return tuple(map(self.key, key))

    def facts(self) -> frozenset[Any]:
        live = set(self.values)
        told = set()
        for fact, true in self.run.facts.items():
            about = set(_values(fact))
            if about & live:
                told.add((self.key(fact) if about <= live else fact, true))
        return frozenset(told)


def _values(key: Any) -> list[int]:
    if not isinstance(key, tuple):
        return []
    return [key[1]] if key and key[0] == "value" else [n for part in key for n in _values(part)]
