"""What does a call of a traced program do? Own functions are followed, named ones run, all others count as values."""

import sysconfig
import types
from functools import partial
from typing import Any

from astraea_sglang.frontend.lang import choices
from astraea_sglang.frontend.trace_calls import (
    ANY_VALUE,
    CHANGING,
    PLAIN_IDS,
    PURE,
    READING,
    SHAPED,
    TEXT_METHODS,
    in_language,
    plain_error,
)
from astraea_sglang.frontend.trace_source import Sources
from astraea_sglang.frontend.trace_symbol import SCALARS, Symbol, Untraceable
from astraea_sglang.frontend.trace_values import (
    CALLABLES,
    CHANGEABLE,
    CONTAINERS,
    STATES,
    VIEWS,
    Values,
    enclosed,
    is_expr,
)

MAX_CALLS = 50  # one in another
LIBRARY = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


class Calls(Values):
    """What a rewritten function asks about calls. What is not run must not be able to change what the run made."""

    def __init__(self, sources: Sources) -> None:
        super().__init__()
        self.sources = sources
        self.depth = 0
        self.guards = 0  # handlers that would take an error
        self.contexts: list[Any] = []  # that states made

    def call(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        self.spend()
        if self.depth == MAX_CALLS:
            self.give_up(f"makes {MAX_CALLS} calls within each other")
        self.depth += 1
        try:
            return self._call(fn, args, kwargs)
        finally:
            self.depth -= 1

    def _call(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kind = type(fn)
        if kind is partial:
            return self._call(fn.func, (*fn.args, *args), {**fn.keywords, **kwargs})
        if kind is Symbol:
            return self._of_symbol(fn, args, kwargs)
        if kind is types.FunctionType:
            if in_language(fn):
                return self._expression(fn, args, kwargs)
            if fn.__code__ in self.sources.codes:
                return self._made(fn(*args, **kwargs))
            if id(fn) not in PURE and not fn.__code__.co_filename.startswith(LIBRARY):
                try:
                    made: Any = self.sources.made(fn, self)
                except OSError:
                    return self._outside(fn, args, kwargs)
                except (Untraceable, Exception) as reason:
                    self.give_up_all(str(reason))
                return self._made(made(*args, **kwargs))
        method = (
            kind is types.MethodType and type(fn.__func__) is types.FunctionType and type(fn.__self__) not in STATES
        )
        if method and any(type(arg) in STATES for arg in args):  # a part of the program, in an object around it
            return self._call(fn.__func__, (fn.__self__, *args), kwargs)
        owner = fn.__self__ if kind in (types.MethodType, types.BuiltinFunctionType) else None
        if type(owner) in STATES:
            return self._of_state(fn, owner, args, kwargs)
        if type(owner) in (str, *CONTAINERS):
            return self._of_container(fn, owner, args, kwargs)
        if plain_error(fn):
            for value in [*args, *kwargs.values()]:
                self.symbols(value)
            return self.made(fn(*args, **kwargs))
        if fn is print:
            return None
        if fn is map and len(args) == 2 and not kwargs:
            return self.made([self.call(args[0], item) for item in self.unpack(args[1])])
        return self._pure(fn, args, kwargs) if id(fn) in PURE else self._outside(fn, args, kwargs)

    def _made(self, value: Any) -> Any:
        return self.made(value) if type(value) is types.GeneratorType else value

    def _of_symbol(self, fn: Symbol, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Symbol:
        self._harmless("a value", args, kwargs)
        key = fn._key
        if key[0] == "." and key[-1][-1] in TEXT_METHODS:
            return self.derive("()", Symbol(self, key, plain=True, size=fn._size), args, kwargs)
        if self.guards:
            self.give_up("uses a value within try, and it is not known what that raises")
        return self.fresh()

    def _of_state(self, fn: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if fn.__name__ == "__iadd__":
            return self.augment("Add", owner, *args)
        if fn.__name__ not in ("set_var", "__setitem__"):
            for value in [*args, *kwargs.values()]:
                self.readable(value)
        value = fn(*args, **kwargs)
        if fn.__name__ in ("copy", "var_scope", "system", "user", "assistant") and not is_expr(value):
            self.contexts.append(value)
        return value

    def _expression(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        asked = (*args[:1], *kwargs.values()) if fn.__name__ == "tool" else (*args, *kwargs.values())
        for value in asked:
            if type(value) not in CALLABLES and type(value).__module__ != choices.__name__:
                self.symbols(value)
        if fn.__name__ == "tool":
            for value in (*args[1:], kwargs.get("fn")):
                self._hand(value)
        return fn(*args, **kwargs)

    def _hand(self, value: Any) -> None:
        """A tool gets this, or is this: it may change what it can reach."""
        self.spend()
        kind = type(value)
        if kind in (*STATES, types.GeneratorType) or (kind is types.MethodType and type(value.__self__) in STATES):
            self.give_up(f"hands a {kind.__name__} to a tool")
        if id(value) in self.handed:
            return
        if kind in (*CHANGEABLE, types.FunctionType):
            self.handed[id(value)] = value
        if kind is types.BuiltinFunctionType and type(value.__self__) in CHANGEABLE and value.__name__ not in READING:
            self._hand(value.__self__)
        elif kind is types.FunctionType:
            around = [value.__globals__.get(name) for name in value.__code__.co_names]
            for part in (*enclosed(value), *(part for part in around if type(part) in CHANGEABLE)):
                self._hand(part)
        elif kind in (list, tuple, set, frozenset, dict):
            for part in [*value, *value.values()] if kind is dict else value:
                self._hand(part)

    def _of_container(self, fn: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name, kind, everything = fn.__name__, type(owner), [*args, *kwargs.values()]
        self.readable(owner)
        if kind is str:
            args = tuple(self._listed(arg) for arg in args)
            if any([self.symbols(arg) for arg in [*args, *kwargs.values()]]):
                return self._text_method(fn, owner, args, kwargs)
            if any(type(arg) is int and abs(arg) > 10_000 for arg in args):
                self.give_up("makes something very long")
            value = fn(*args, **kwargs)
            return self.made(value) if type(value) in CHANGEABLE else self.sized(value)
        if name in CHANGING:
            self.own(owner)
        elif name not in READING:
            self.give_up(f"calls {name} of a {kind.__name__}, which is not traced")
        if name in ("remove", "sort", "index", "count"):
            self.symbols(owner)
        if name in ("extend", "update"):
            args = tuple(self.unpack(arg) for arg in args)
        if name not in (*ANY_VALUE, "extend", "update"):
            for value in everything:
                self.symbols(value)
        if name == "setdefault" or (name == "update" and kind is dict):
            for arg in args[:1]:
                self.symbols(arg if name == "setdefault" else list(self.mapping(arg)))
        value = fn(*args, **kwargs)
        return self.made(value) if type(value) in CHANGEABLE and name not in ("get", "pop", "setdefault") else value

    def _text_method(self, fn: Any, owner: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Symbol:
        if fn.__name__ in TEXT_METHODS:
            return self.derive("method", fn.__name__, owner, args, kwargs)
        return self.fresh()

    def _listed(self, value: Any) -> Any:
        return self.unpack(value) if type(value) is types.GeneratorType else value

    def _pure(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args = tuple(self._listed(arg) for arg in args)
        everything = [*args, *kwargs.values()]
        if fn is dict and not args:
            return self.made(kwargs)
        if fn in SHAPED and not any(type(part) is Symbol for part in everything):
            for part in everything:
                self.readable(part) if fn is len else None if type(part) in SCALARS else self.unpack(part)
        elif any([self.symbols(part) for part in everything]):
            return self.derive("call", fn.__name__, args, kwargs) if id(fn) in PLAIN_IDS else self._unknown(fn)
        value = fn(*args, **kwargs)
        if fn in (enumerate, zip, reversed):
            value = list(value)
        return self.made(value) if type(value) in CHANGEABLE else self.sized(value)

    def _outside(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Symbol:
        """What an unknown function would give. It does not run: it might do something."""
        name = fn.__qualname__ if type(fn) in (types.FunctionType, types.BuiltinFunctionType) else type(fn).__name__
        self._harmless(name, args, kwargs)
        return self._unknown(fn)

    def _unknown(self, fn: Any) -> Symbol:
        if self.guards:
            self.give_up("calls a function within try, and it is not known what that raises")
        return self.fresh()

    def _harmless(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises Untraceable if a function that does not run here could change the program by what it is given."""
        for value in [*args, *kwargs.values()]:
            kind = type(value)
            if kind in (tuple, frozenset):
                self._harmless(name, tuple(value), {})
            elif kind in STATES:
                self.give_up(f"hands its state to {name}, which is not traced")
            elif (
                kind in (*CHANGEABLE, *VIEWS, types.FunctionType, types.MethodType, types.GeneratorType, partial)
                or (kind is types.BuiltinFunctionType and type(value.__self__) in CHANGEABLE)
                or (kind is not Symbol and is_expr(value))
                or self.is_made(value)
            ):
                self.give_up(f"hands a {kind.__name__} to {name}, which is not traced")
