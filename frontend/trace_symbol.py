"""What is not known before a program runs? Values that record what is asked of them, in place of answers."""

from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

from astraea_sglang.frontend.lang import SglExpr

SCALARS = (str, int, float, bool, bytes, type(None))


class Untraceable(BaseException):
    """Why can a program not be traced? One line. No Exception, so that no program takes it for an error of its own."""


class Decider(Protocol):
    """Whoever runs the program with symbols."""

    def derive(self, op: str, *operands: Any) -> "Symbol":
        """What comes of an operation on values that are not all known?"""
        ...

    def decide(self, symbol: "Symbol") -> bool:
        """Is it true? Both are, each in a run of its own."""
        ...

    def give_up(self, why: str) -> NoReturn:
        """Raises Untraceable, with the line of the program that is running."""
        ...

    def give_up_all(self, why: str) -> NoReturn:
        """The same, where `why` says the line."""
        ...


class Symbol(SglExpr):
    """A value that a generation or a tool gives, or that was made of such. `key` says of what, and how.

    A `plain` one is a text, number or truth: asked again, it answers the same. Others may have changed meanwhile.
    """

    def __init__(self, run: Decider, key: Any, *, plain: bool = False, size: int = 1) -> None:
        self._run, self._key, self._plain, self._size = run, key, plain, size  # size: values in the key

    def __bool__(self) -> bool:
        return self._run.decide(self)

    def __add__(self, other: Any) -> Any:
        if isinstance(other, SglExpr) and not isinstance(other, Symbol):
            return self.concatenate_ir(self, other)
        return self._run.derive("+", self, other)

    def __radd__(self, other: Any) -> Any:
        return self._run.derive("+", other, self)

    def __getattr__(self, name: str) -> "Symbol":
        if name.startswith("__"):
            raise AttributeError(name)
        return self._run.derive(".", self, name)

    def __call__(self, *args: Any, **kwargs: Any) -> "Symbol":
        return self._run.derive("()", self, args, kwargs)

    def __contains__(self, item: Any) -> bool:
        return bool(self._run.derive("in", item, self))

    def __eq__(self, other: Any) -> Any:
        return self._run.derive("==", self, other)

    def __ne__(self, other: Any) -> Any:
        return self._run.derive("!=", self, other)


def _operation(op: str, *, swapped: bool = False) -> Any:
    def method(self: Symbol, *others: Any) -> Symbol:
        return self._run.derive(op, *others, self) if swapped else self._run.derive(op, self, *others)

    return method


def _impossible(what: str) -> Any:
    def method(self: Symbol, *_: Any) -> NoReturn:
        self._run.give_up(what)

    return method


for _name in ("lt", "le", "gt", "ge", "getitem", "neg", "abs"):
    setattr(Symbol, f"__{_name}__", _operation(_name))
for _name in ("sub", "mul", "mod", "floordiv", "truediv", "pow", "and", "or"):
    setattr(Symbol, f"__{_name}__", _operation(_name))
    setattr(Symbol, f"__r{_name}__", _operation(_name, swapped=True))
for _name in ("len", "int", "float", "index", "str", "repr", "format", "hash", "enter", "setitem", "delitem"):
    setattr(Symbol, f"__{_name}__", _impossible(f"needs {_name}() of a value where that is not traced"))
Symbol.__iter__ = _impossible("goes through a value, as often as that says")  # pyright: ignore[reportAttributeAccessIssue]


def key_of(value: Any) -> Any:
    """How does a value enter a symbol's key? What is neither plain nor a symbol is like nothing else."""
    kind = type(value)
    if kind is Symbol:
        return value._key
    if kind in SCALARS:
        return ("const", kind.__name__, value)
    if kind in (list, tuple):
        return ("list", *map(key_of, value))
    if kind is dict and all(type(name) is str for name in value):
        return ("dict", *((name, key_of(part)) for name, part in value.items()))
    return ("object", object())


def plain_size(value: Any) -> int | None:
    """How many values are in the key of this one? None if asking it again might give something else."""
    kind = type(value)
    if kind is Symbol:
        return value._size if value._plain else None
    if kind in SCALARS:
        return 1
    parts = value if kind in (list, tuple) else [*value, *value.values()] if kind is dict else None
    sizes = None if parts is None else [plain_size(part) for part in parts]
    return None if sizes is None or None in sizes else 1 + sum(size or 0 for size in sizes)


def implied(key: Any, facts: Mapping[Any, bool]) -> bool | None:
    """What do known truths say of another? What equals one text equals no other; a choice is one of its choices."""
    if key[0] != "==" or key[2][:2] != ("const", "str"):
        return None
    _, left, right = key
    others = [fact[2] for fact, true in facts.items() if true and fact[:2] == ("==", left)]
    if any(other[:2] == ("const", "str") for other in others):
        return False
    if left[0] == "value" and left[2] is not None:
        possible = {choice for choice in left[2] if facts.get(("==", left, ("const", "str", choice))) is not False}
        return right[2] in possible if right[2] not in possible or len(possible) == 1 else None
    return None
