"""What does a program do if truths are decided so? One run of its function, with symbols for what is not known."""

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from astraea_sglang.frontend.run_place import Lines, Path, lines_of
from astraea_sglang.frontend.trace_calls import plain_error
from astraea_sglang.frontend.trace_follow import Calls
from astraea_sglang.frontend.trace_path import Loop, Ways
from astraea_sglang.frontend.trace_source import Sources
from astraea_sglang.frontend.trace_state import TracedExecutor, TracedState
from astraea_sglang.frontend.trace_symbol import Symbol, Untraceable, implied, key_of, plain_size
from astraea_sglang.frontend.trace_values import CHANGEABLE

MAX_DECISIONS = 250  # of one run
MAX_KEY = 200  # values in what is remembered of a symbol


class Seen(BaseException):
    """From here on another run has shown, or will show, all that there is."""


class Shared:
    """What do all runs of one program share? What they show, the rewritten functions, and a budget of steps."""

    def __init__(self, limit: int | None, steps: int) -> None:
        self.ways, self.limit, self.steps = Ways(), limit, steps
        self.sources = Sources()
        self.failed: Untraceable | None = None  # whatever a program makes of it


class Run(Calls):
    """One run; what a rewritten function asks. `answers` decides the first truths, and then all is False."""

    def __init__(self, shared: Shared, fn: types.FunctionType, answers: tuple[bool, ...]) -> None:
        super().__init__(shared.sources)
        self.shared, self.ways, self.limit, self.answers = shared, shared.ways, shared.limit, answers
        self.fn = shared.sources.made(fn, self)
        self.taken: list[bool] = []
        self.facts: dict[Any, bool] = {}
        self.loops: list[Loop] = []
        self.states: dict[Path, TracedExecutor] = {}
        self.values = 0
        self.over = False  # all else is seen
        self.errors: list[BaseException] = []  # that the program itself raises
        self.at_point: Callable[[types.FrameType], None] = lambda frame: None
        self.base: types.FrameType | None = None

    def go(self, state: TracedState, arguments: dict[str, Any]) -> None:
        """Runs the function. Raises Untraceable, and what it raises for lack of values; other errors are its end."""
        self.base = sys._getframe()
        try:
            self.fn(state, **arguments)
        except Exception as error:
            if not any(error is own for own in self.errors):
                raise
        finally:
            self.base = None

    # What is decided

    def fresh(self, among: tuple[str, ...] | None = None, *, text: bool = False) -> Symbol:
        self.spend()
        self.values += 1
        return Symbol(self, ("value", self.values, among), plain=text or among is not None)

    def derive(self, op: str, *operands: Any) -> Symbol:
        self.spend()
        if op in ("==", "!=", "is"):
            operands = tuple(sorted(operands, key=lambda operand: type(operand) is not Symbol))
        elif self.guards:
            self.give_up("uses a value within try, and it is not known what that raises")
        sizes = [1 if op == "is" else plain_size(operand) for operand in operands]
        size = 1 + sum(size or 0 for size in sizes)
        if None in sizes or size > MAX_KEY:
            return self.fresh()
        self.spend(size // 10)
        key = (("==" if op == "!=" else op), *map(key_of, operands))
        return Symbol(self, ("not", key) if op == "!=" else key, plain=op != ".", size=size)

    def decide(self, symbol: Symbol) -> bool:
        key, truth = symbol._key, True
        while key[0] == "not":
            key, truth = key[1], not truth
        self.spend(1 + symbol._size // 10)
        known = self.facts.get(key, implied(key, self.facts)) if symbol._plain else None
        if known is None:
            taken = len(self.taken)
            if taken == MAX_DECISIONS:
                self.give_up_all("there are too many ways through it")
            known = self.answers[taken] if taken < len(self.answers) else False
            self.taken.append(known)
        if symbol._plain:
            self.facts[key] = known
        return known is truth

    # What a rewritten function asks

    stops = (Untraceable, Seen)  # what no handler of the program takes

    def raising(self, error: Any) -> Any:
        error = self.made(error()) if plain_error(error) else error
        if error is not None:
            if not self.is_made(error):
                self.give_up(f"raises a {type(error).__name__} that it did not make")
            self.errors.append(error)
        return error

    def point(self) -> None:
        frame = sys._getframe(1)
        if frame.f_back is self.base:
            try:
                self.at_point(frame)
            except Exception as error:  # must not reach a handler of the program
                self.give_up(f"cannot be compared: {type(error).__name__}: {error}")

    @contextmanager
    def guarded(self) -> Iterator[None]:
        self.guards += 1
        try:
            yield
        finally:
            self.guards -= 1

    @contextmanager
    def looping(self) -> Iterator[None]:
        loop = Loop(self.lines(), None)
        self.loops.append(loop)
        try:
            yield
        finally:
            self.loops.remove(loop)

    def context(self, value: Any) -> Any:
        if not any(value is own for own in self.contexts):
            self.give_up(f"enters a {type(value).__name__}, which is not traced")
        return value

    def again(self, test: Any) -> Any:
        self.spend()
        loop = self.loops[-1]
        loop.visits += 1
        test = bool(self.truth(test))
        loop.round += test
        return test

    def rows(self, iterable: Any, form: tuple[Any, ...]) -> Iterator[Any]:
        return (self.unpack_as(item, form) for item in self.loop(iterable))

    def loop(self, iterable: Any) -> Iterator[Any]:
        if type(iterable) is types.GeneratorType and self.is_made(iterable):
            return self._rounds(iterable, iterable, object())
        items = self.unpack(iterable)
        items = items if type(items) is range else list(items)
        return self._rounds(items, iterable, items)

    def _rounds(self, items: Any, source: Any, left: object) -> Iterator[Any]:
        loop = Loop(self.lines(), left)
        self.loops.append(loop)
        try:
            for item in items:
                self.spend()
                loop.turn()
                yield item
                if type(source) in CHANGEABLE and len(source) != len(items):
                    self.give_up("changes what it goes through")
            loop.visits += 1
        finally:
            self.loops.remove(loop)

    # Where it is

    def lines(self) -> Lines:
        self.spend()
        lines = lines_of(self.fn.__code__)
        if lines is None:
            self.give_up("uses its state in another thread")
        return lines

    def give_up(self, why: str) -> NoReturn:
        lines = lines_of(self.fn.__code__)
        self.give_up_all(f"line {lines[0][1]} {why}" if lines else why)

    def give_up_all(self, why: str) -> NoReturn:
        self.shared.failed = self.shared.failed or Untraceable(why)
        raise self.shared.failed

    def spend(self, steps: int = 1) -> None:
        if self.shared.failed or self.over:
            raise self.shared.failed or Seen
        self.shared.steps -= steps
        if self.shared.steps < 0:
            self.give_up_all("there are too many ways through it")
