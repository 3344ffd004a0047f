"""What may a traced program do with a value? Anything with one that this run made; with others, only what runs no code.

A run made the lists, dicts, sets and generators that its own code wrote down, and its states. Nothing else is changed,
used up, entered, called, compared or asked for its truth: a class of the user could do anything then.
"""

import inspect
import operator
import types
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any, NoReturn

from astraea_sglang.frontend.lang import SglExpr, SglFunction
from astraea_sglang.frontend.trace_calls import OPERATORS
from astraea_sglang.frontend.trace_state import TracedExecutor, TracedGroup, TracedState
from astraea_sglang.frontend.trace_symbol import SCALARS, Symbol, Untraceable

MAX_ROUNDS = 10_000
MAX_LENGTH = 1_000_000  # characters or items of what is known
MAX_DEPTH = 6  # of containers in containers

VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
CHANGEABLE = (list, dict, set)
CONTAINERS = (*CHANGEABLE, tuple, frozenset, range, *VIEWS)
STATES = (TracedState, TracedGroup, TracedExecutor)
CALLABLES = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, SglFunction)
METHODS = (
    types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, types.ClassMethodDescriptorType,
    types.WrapperDescriptorType, classmethod, staticmethod,
)  # fmt: skip
BUILTINS = (*SCALARS, *CONTAINERS)


def is_expr(value: Any) -> bool:
    """Is it an expression of the language, ours included?"""
    return SglExpr in type(value).__mro__ and type(value).__module__.startswith(("sglang.", "astraea_sglang."))


def enclosed(fn: types.FunctionType) -> list[Any]:
    """What is in its cells, those of them that are filled?"""
    found: list[Any] = []
    for cell in fn.__closure__ or ():
        with suppress(ValueError):
            found.append(cell.cell_contents)
    return found


def _by_c(kind: type) -> bool:
    """Are its attributes found by the interpreter's own code?"""
    return type(kind) is type and type(kind.__getattribute__) is types.WrapperDescriptorType


class Values(ABC):
    """What a rewritten function asks about values. Whatever is not allowed gives up."""

    def __init__(self) -> None:
        self.made_here: dict[int, Any] = {}  # by id, and kept, so that the ids stay theirs
        self.handed: dict[int, Any] = {}  # what a tool may change

    @abstractmethod
    def spend(self, steps: int = 1) -> None:
        """Count steps; gives up when there have been too many."""

    @abstractmethod
    def give_up(self, why: str) -> NoReturn:
        """Raises Untraceable."""
        raise Untraceable(why)

    @abstractmethod
    def give_up_all(self, why: str) -> NoReturn:
        """The same, where `why` says the line."""
        raise Untraceable(why)

    @abstractmethod
    def derive(self, op: str, *operands: Any) -> Symbol:
        """What comes of operands that are not all known?"""

    @abstractmethod
    def decide(self, symbol: Symbol) -> bool:
        """Is it true?"""

    @abstractmethod
    def fresh(self, *, text: bool = False) -> Symbol:
        """A value of which nothing is known, but perhaps that it is a text, number or truth."""

    @abstractmethod
    def call(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """What does a call give?"""

    # What is allowed

    def made(self, value: Any) -> Any:
        self.made_here[id(value)] = value
        return self.sized(value)

    def is_made(self, value: Any) -> bool:
        return id(value) in self.made_here

    def sized(self, value: Any) -> Any:
        if type(value) in (str, bytes, *CONTAINERS):
            self.spend(1 + len(value) // 100)
            if len(value) > MAX_LENGTH:
                self.give_up(f"makes something longer than {MAX_LENGTH}")
        elif type(value) is int and value.bit_length() > 10_000:
            self.give_up("makes a very large number")
        return value

    def readable(self, value: Any) -> Any:
        """Can it be looked into without running code of anybody?"""
        kind = type(value)
        if kind in CONTAINERS and id(value) in self.handed:
            self.give_up(f"looks into a {kind.__name__} that a tool may have changed")
        if kind not in (*BUILTINS, Symbol, *STATES) and not is_expr(value):
            self.give_up(f"uses a {kind.__name__} that it did not make")
        return value

    def symbols(self, value: Any, depth: int = MAX_DEPTH) -> bool:
        """Is any part of it not known? All of it must be readable."""
        self.spend()
        kind = type(self.readable(value))
        if kind in STATES:
            self.give_up("uses a state where only values are traced")
        if kind not in CONTAINERS:
            return kind is Symbol
        if not depth or len(value) > MAX_ROUNDS:
            self.give_up(f"uses a {kind.__name__} that is too large")
        if kind is range:
            self.spend(len(value))
            return False
        parts = [*value.keys(), *value.values()] if kind is dict else list(value)
        return any([self.symbols(part, depth - 1) for part in parts])

    def looked(self, value: Any) -> Any:
        self.symbols(value)
        return value

    def plain(self, value: Any) -> Any:
        if self.symbols(value):
            self.give_up("compares a value in a way that is not traced")
        return value

    def truth(self, value: Any) -> Any:
        return value if type(value) in CALLABLES else self.readable(value)

    def own(self, container: Any) -> Any:
        kind = type(container)
        if kind is Symbol:
            self.give_up("changes a value that is not known")
        if kind not in STATES and not (kind in CHANGEABLE and self.is_made(container)):
            self.give_up("changes what is kept outside the program")
        return container

    def fixed(self, value: Any) -> NoReturn:
        self.give_up(f"changes an attribute of a {type(value).__name__}")

    def unpack(self, value: Any) -> Any:
        """The items of what is taken apart at once."""
        kind = type(value)
        if kind is types.GeneratorType and self.is_made(value):
            value = list(islice(value, MAX_ROUNDS + 1))
        elif kind is Symbol:
            self.give_up("goes through a value, as often as that says")
        elif kind is TracedGroup:
            value = list(value.states)
        elif kind not in (str, bytes, *CONTAINERS):
            self.give_up(f"goes through a {kind.__name__} that it did not make")
        self.readable(value)
        if len(value) > MAX_ROUNDS:
            self.give_up(f"makes more than {MAX_ROUNDS} rounds")
        self.spend(1 + len(value) // 10)
        return value

    def unpack_as(self, value: Any, form: tuple[Any, ...]) -> Any:
        """The same for a target of this form: of each part, None or the form in which it is taken apart too."""
        value = self.unpack(value)
        for part, inner in zip(value, form, strict=False):
            if inner is not None and self.unpack_as(part, inner) is not part:
                self.give_up(f"takes apart a {type(part).__name__} within another")
        return value

    def mapping(self, value: Any) -> Any:
        if type(value) is not dict:
            self.give_up(f"takes a {type(value).__name__} for a dict")
        self.symbols(list(self.readable(value)))
        return value

    # What is done with them

    def attr(self, value: Any, name: str) -> Any:
        kind = type(value)
        if kind is types.ModuleType:
            if name not in vars(value):
                self.give_up(f"takes {name} from a module, which has to make it first")
            return vars(value)[name]
        if kind in (*SCALARS, *CONTAINERS, Symbol, *STATES, SglFunction) or is_expr(value):
            return getattr(value, name)
        if kind is type and value in BUILTINS:
            return getattr(value, name)
        found = inspect.getattr_static(value, name, None) if _by_c(kind) else None
        if type(found) not in (*SCALARS, *METHODS) or found is None:
            self.give_up(f"takes {name} from a {kind.__name__} that it did not make")
        if type(found) is types.FunctionType and kind is not type:
            of_class = next((vars(base)[name] for base in inspect.getmro(kind) if name in vars(base)), None)
            return types.MethodType(found, value) if found is of_class else found
        return self.fresh(text=type(found) in SCALARS)  # a method's call gives anything, and others may set the rest

    def text(self, *parts: Any) -> Any:
        unknown = False
        for part in parts:
            if type(part) is tuple:
                unknown |= self.symbols(part[0]) | self.symbols(part[2])
                if type(part[2]) is str and len(part[2]) > 6:
                    self.give_up("writes a value in a format that is not traced")
        if unknown:
            return self.derive("text", *parts)
        how: dict[int, Callable[[Any], Any]] = {-1: lambda value: value, 115: str, 114: repr, 97: ascii}
        done = [part if type(part) is str else format(how[part[1]](part[0]), part[2]) for part in parts]
        return self.sized("".join(done))

    def binary(self, op: str, left: Any, right: Any) -> Any:
        kinds = {type(self.readable(left)), type(self.readable(right))}
        if kinds & {*STATES}:
            self.give_up("uses a state where only values are traced")
        if kinds & {dict, set, frozenset}:
            self.symbols([left, right])
        if op == "Mod" and type(left) is str and self.symbols(right):
            return self.derive("mod", left, right)
        if kinds <= {*BUILTINS}:
            numbers: Any = (left, right)
            if op in ("Pow", "LShift") and not all(-1000 < number < 1000 for number in numbers):
                self.give_up("makes a very large number")
            if op == "Mult" and kinds & {str, bytes, list, tuple} and int in kinds:
                many, times = (right, left) if type(left) is int else (left, right)
                if len(many) * times > MAX_LENGTH:
                    self.give_up(f"makes something longer than {MAX_LENGTH}")
        result = OPERATORS[op](left, right)
        return self.made(result) if type(result) in CHANGEABLE else self.sized(result)

    def compare(self, op: str, left: Any, right: Any) -> Any:
        return OPERATORS[op](self.looked(left), self.looked(right))

    def same(self, left: Any, right: Any) -> Any:
        if left is right or (type(left) is Symbol) is (type(right) is Symbol) is False:
            return left is right
        return self.derive("is", left, right)

    def contains(self, item: Any, container: Any) -> Any:
        kind = type(self.readable(container))
        if kind in CONTAINERS and kind is not range and (kind is not dict or type(item) is Symbol):
            self.symbols(list(container))
        if self.symbols(item):
            if type(item) is Symbol and kind in (dict, set, frozenset, list, tuple):
                parts = sorted(container, key=repr) if kind in (set, frozenset) else container
                return any(item == part for part in parts)
            if kind is not Symbol:
                return self.derive("in", item, container)
        return item in container

    def item(self, container: Any, key: Any) -> Any:
        self.symbols(key)
        kind = type(self.readable(container))
        if type(key) is not Symbol or kind is Symbol:
            return container[key]
        if kind is not dict:
            self.give_up("takes an item that a value names")
        for part in self.looked(list(container)):
            if key == part:
                return container[part]
        raise KeyError("a value that is none of the keys")

    def sliced(self, value: Any, *bounds: Any) -> Any:
        for bound in bounds:
            if type(bound) not in (int, type(None)):
                self.give_up("takes a part that a value names")
        part = self.readable(value)[slice(*bounds)]
        return self.made(part) if type(part) is list else part

    def augment(self, op: str, left: Any, right: Any) -> Any:
        kind = type(left)
        if kind in (TracedState, TracedGroup) and op == "Add":
            if type(right) in CALLABLES and kind is TracedGroup:
                left += lambda i: self.call(right, i)
            else:
                self.readable(right)
                left += right
            return left
        if kind is Symbol and not left._plain:
            self.give_up("changes a value that is not known")
        if kind in CHANGEABLE:
            self.own(left)
            right = self.unpack(right)
            if kind is not list:
                self.symbols(right)
            left = getattr(operator, {"Add": "iadd", "BitOr": "ior", "BitAnd": "iand", "Sub": "isub"}[op])(left, right)
            return self.sized(left)
        return self.binary(op, left, right)

    def augment_item(self, container: Any, key: Any, op: str, right: Any) -> None:
        self.own(container)
        container[key] = self.augment(op, self.item(container, key), right)
