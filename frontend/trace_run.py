"""What does a program do if truths are decided so? One run of its function, with symbols for what is not known."""

import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, NoReturn

from astraea_sglang.frontend.lang import SglFunction
from astraea_sglang.frontend.run_place import Lines, Path, lines_of
from astraea_sglang.frontend.trace_calls import CALLING, CHANGING, SHAPED, in_language, is_pure
from astraea_sglang.frontend.trace_path import Loop, Ways
from astraea_sglang.frontend.trace_source import Sources
from astraea_sglang.frontend.trace_state import TracedExecutor, TracedGroup, TracedState
from astraea_sglang.frontend.trace_symbol import Symbol, Untraceable, has_symbols, implied, key_of

MAX_ROUNDS = 10_000
MAX_DECISIONS = 250  # of one run

CONTAINERS = (list, dict, set)
STATES = (TracedState, TracedGroup, TracedExecutor)
LIBRARY = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


class Shared:
    """What do all runs of one program share? What they show, the rewritten functions, and a budget of steps."""

    def __init__(self, limit: int | None, steps: int) -> None:
        self.ways, self.limit, self.steps = Ways(), limit, steps
        self.sources = Sources()


class Run:
    """One run; what a rewritten function asks. `answers` decides the first truths, and then all is False."""

    def __init__(self, shared: Shared, fn: types.FunctionType, answers: tuple[bool, ...]) -> None:
        self.shared, self.ways, self.limit, self.answers = shared, shared.ways, shared.limit, answers
        self.fn = shared.sources.made(fn, self)
        self.taken: list[bool] = []
        self.facts: dict[Any, bool] = {}
        self.loops: list[Loop] = []
        self.states: dict[Path, TracedExecutor] = {}
        self.values = 0
        self.guards = 0
        self.errors: list[BaseException] = []  # that the program itself raises
        self.at_point: Callable[[types.FrameType], None] = lambda frame: None
        self.base: types.FrameType | None = None

    def go(self, state: TracedState, arguments: dict[str, Any]) -> None:
        """Runs the function. Raises Untraceable, and what it raises for lack of values; other errors are its end."""
        self.base = sys._getframe()
        try:
            self.fn(state, **arguments)
        except Exception as error:
            if error not in self.errors:
                raise
        finally:
            self.base = None

    # What is decided

    def fresh(self, choices: tuple[str, ...] | None = None) -> Symbol:
        self.values += 1
        return Symbol(self, ("value", self.values, choices))

    def derive(self, op: str, *operands: Any) -> Symbol:
        self._spend()
        if op in ("==", "!=", "is"):
            operands = tuple(sorted(operands, key=lambda operand: not isinstance(operand, Symbol)))
        elif self.guards:
            self.give_up("uses a value within try, and it is not known what that raises")
        key = (("==" if op == "!=" else op), *map(key_of, operands))
        return Symbol(self, ("not", key) if op == "!=" else key)

    def decide(self, key: Any) -> bool:
        if key[0] == "not":
            return not self.decide(key[1])
        known = self.facts.get(key, implied(key, self.facts))
        if known is None:
            self._spend()
            taken = len(self.taken)
            if taken == MAX_DECISIONS:
                raise Untraceable("there are too many ways through it")
            known = self.answers[taken] if taken < len(self.answers) else False
            self.taken.append(known)
        self.facts[key] = known
        return known

    # What a rewritten function asks

    def text(self, *parts: Any) -> Any:
        values = [part for part in parts if not isinstance(part, str)]
        if any(has_symbols(value) or has_symbols(spec) for value, _, spec in values):
            return Symbol(self, ("text", *map(key_of, parts)))
        how: dict[int, Callable[[Any], Any]] = {-1: lambda value: value, 115: str, 114: repr, 97: ascii}
        return "".join(part if isinstance(part, str) else format(how[part[1]](part[0]), part[2]) for part in parts)

    def mod(self, left: Any, right: Any) -> Any:
        return self.derive("%", left, right) if isinstance(left, str) and has_symbols(right) else left % right

    def same(self, left: Any, right: Any) -> Any:
        if isinstance(left, Symbol) is isinstance(right, Symbol) is False or left is right:
            return left is right
        return self.derive("is", left, right)

    def contains(self, item: Any, container: Any) -> Any:
        if isinstance(item, Symbol) and isinstance(container, dict | set | frozenset | list | tuple):
            parts = sorted(container, key=repr) if isinstance(container, set | frozenset) else container
            return any(item == part for part in parts)
        if isinstance(item, Symbol) and not isinstance(container, Symbol):
            return self.derive("in", item, container)
        return item in container

    def item(self, container: Any, key: Any) -> Any:
        if not isinstance(key, Symbol) or isinstance(container, Symbol):
            return container[key]  # pyright: ignore[reportIndexIssue]  # set where Symbol is made
        if not isinstance(container, dict):
            self.give_up("takes an item that a value names")
        for part in container:
            if key == part:
                return container[part]
        raise KeyError("a value that is none of the keys")

    def plain(self, value: Any) -> Any:
        if has_symbols(value):
            self.give_up("compares a value in a way that is not traced")
        return value

    def own(self, container: Any) -> Any:
        if isinstance(container, Symbol):
            self.give_up("changes a value that is not known")
        frame = sys._getframe(1)
        while frame is not None and frame.f_code not in self.shared.sources.codes:
            frame = frame.f_back
        fn = self.fn
        outside = [*fn.__globals__.values(), *(frame.f_globals.values() if frame else ())]
        outside += [cell.cell_contents for cell in fn.__closure__ or () if _filled(cell)]
        if any(container is known for known in outside):
            self.give_up("changes what is kept outside the program")
        return container

    def raising(self, error: Any) -> Any:
        error = error() if isinstance(error, type) and issubclass(error, BaseException) else error
        if isinstance(error, BaseException):
            self.errors.append(error)
        return error

    def point(self) -> None:
        frame = sys._getframe(1)
        if frame.f_back is self.base:
            self.at_point(frame)

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

    def again(self, test: Any) -> Any:
        self._spend()
        loop = self.loops[-1]
        loop.visits += 1
        test = bool(test)
        loop.round += test
        return test

    def loop(self, iterable: Any) -> Iterator[Any]:
        if isinstance(iterable, Symbol):
            self.give_up("goes through a value, as often as that says")
        lazy = iter(iterable) is iterable and not isinstance(iterable, zip | enumerate | reversed)
        items = iterable if lazy else list(islice(iterable, MAX_ROUNDS + 1))
        if isinstance(items, list) and len(items) > MAX_ROUNDS:
            self.give_up(f"makes more than {MAX_ROUNDS} rounds")
        return self._rounds(items, iterable, lazy)

    def _rounds(self, items: Iterable[Any], source: Any, lazy: bool) -> Iterator[Any]:
        loop = Loop(self.lines(), object() if lazy else source if isinstance(source, range) else items)
        self.loops.append(loop)
        try:
            for item in items:
                self._spend()
                loop.turn()
                yield item
                if isinstance(items, list) and isinstance(source, CONTAINERS) and len(source) != len(items):
                    self.give_up("changes what it goes through")
            loop.visits += 1
        finally:
            self.loops.remove(loop)

    def call(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        self._spend()
        if isinstance(fn, SglFunction) or isinstance(getattr(fn, "__self__", None), SglFunction):
            return self.fresh()  # a program of its own
        if isinstance(fn, partial):
            return self.call(fn.func, *fn.args, *args, **{**fn.keywords, **kwargs})
        owner = getattr(fn, "__self__", None)
        if isinstance(owner, STATES) or in_language(fn) or (isinstance(fn, type) and issubclass(fn, BaseException)):
            return fn(*args, **kwargs)
        plain: Any = getattr(fn, "__func__", fn)  # of a method
        code = getattr(plain, "__code__", None)
        if code in self.shared.sources.codes:
            return fn(*args, **kwargs)
        args = tuple(list(arg) if isinstance(arg, types.GeneratorType) else arg for arg in args)
        if isinstance(fn, Symbol):
            self._harmless("a value", args, kwargs)
            return fn(*args, **kwargs)
        if code is not None and not code.co_filename.startswith(LIBRARY):
            try:
                made: Any = self.shared.sources.made(plain, self)
            except OSError:
                return self._outside(fn, args, kwargs)
            return made(*([owner] if isinstance(fn, types.MethodType) else []), *args, **kwargs)
        if fn is print:
            return None
        return self._pure(fn, owner, args, kwargs) if is_pure(fn) else self._outside(fn, args, kwargs)

    def _pure(self, fn: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(fn, "__name__", "")
        everything = [*args, *kwargs.values()]
        if isinstance(owner, CONTAINERS) or type(owner).__module__ == "collections":
            if name in CHANGING:
                self.own(owner)
            return fn(*args, **kwargs)
        shaped = name in SHAPED and not any(isinstance(part, Symbol) for part in everything)
        if has_symbols(everything) and not shaped:
            return self.derive("call", fn, args, kwargs)
        if name in CALLING:
            args = tuple(self._asking(arg) for arg in args)
            kwargs = {key: self._asking(value) for key, value in kwargs.items()}
        return fn(*args, **kwargs)

    def _asking(self, value: Any) -> Any:
        return (lambda *args, **kwargs: self.call(value, *args, **kwargs)) if callable(value) else value

    def _outside(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Symbol:
        """What an unknown function would give. It does not run: it might do something."""
        name = getattr(fn, "__qualname__", type(fn).__name__)
        self._harmless(name, args, kwargs)
        if self.guards:
            self.give_up(f"calls {name} within try, and it is not known what that raises")
        return self.fresh()

    def _harmless(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises Untraceable if a function that does not run here could change the program by what it is given."""
        for value in [*args, *kwargs.values()]:
            if isinstance(value, tuple):
                self._harmless(name, value, {})
            elif isinstance(value, STATES):
                self.give_up(f"hands its state to {name}, which is not traced")
            elif isinstance(value, (*CONTAINERS, bytearray, types.FunctionType)):
                self.give_up(f"hands a {type(value).__name__} to {name}, which is not traced")

    # Where it is

    def lines(self) -> Lines:
        self._spend()
        lines = lines_of(self.fn.__code__)
        if lines is None:
            self.give_up("uses its state in another thread")
        return lines

    def give_up(self, why: str) -> NoReturn:
        lines = lines_of(self.fn.__code__)
        raise Untraceable(f"line {lines[0][1]} {why}" if lines else why)

    def _spend(self) -> None:
        self.shared.steps -= 1
        if self.shared.steps < 0:
            raise Untraceable("there are too many ways through it")


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
