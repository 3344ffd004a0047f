"""May a call be made while a program is traced? Only what is named here runs: it gives a value, no more."""

import json
import math
import operator
import textwrap
from collections.abc import Callable
from types import FunctionType
from typing import Any

from astraea_sglang.frontend import executor_tools
from astraea_sglang.frontend.lang import gen

LANGUAGE = {"gen", "gen_int", "gen_string", "select", "image", "video", "separate_reasoning"} | {
    role + part for role in ("system", "user", "assistant") for part in ("", "_begin", "_end")
}
TOOLS = {"tool", "parallel", "variable"}

# Functions whose value cannot change afterwards, those that make a new container, and what of them looks at shape only.
PLAIN = (
    str, int, float, bool, len, abs, round, min, max, sum, any, all, repr, chr, ord, divmod, format, json.dumps,
    textwrap.dedent, textwrap.indent, textwrap.shorten, math.floor, math.ceil, math.sqrt, math.log, math.log2, math.exp,
)  # fmt: skip
MAKING = (list, tuple, dict, set, frozenset, sorted, enumerate, zip, reversed, json.loads)
SHAPED = {len, list, tuple, enumerate, zip, reversed}
PURE = {id(fn): fn for fn in (*PLAIN, *MAKING, range)}
PLAIN_IDS = set(map(id, PLAIN))

# Methods of str that give a text, a number or a truth; the others give lists and bytes.
TEXT_METHODS = {
    "capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "format", "index", "isalnum",
    "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace",
    "istitle", "isupper", "join", "ljust", "lower", "lstrip", "removeprefix", "removesuffix", "replace", "rfind",
    "rindex", "rjust", "rstrip", "startswith", "strip", "swapcase", "title", "upper", "zfill",
}  # fmt: skip
READING = {
    "copy", "count", "difference", "get", "index", "intersection", "isdisjoint", "issubset", "issuperset", "items",
    "keys", "symmetric_difference", "union", "values", "__contains__", "__getitem__", "__len__",
}  # fmt: skip
CHANGING = {
    "add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "reverse", "setdefault",
    "sort", "update",
}  # fmt: skip
ANY_VALUE = {"append", "insert", "setdefault"}  # take one without asking anything of it
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mult": operator.mul, "Div": operator.truediv, "Mod": operator.mod,
    "FloorDiv": operator.floordiv, "Pow": operator.pow, "BitAnd": operator.and_, "BitOr": operator.or_,
    "BitXor": operator.xor, "LShift": operator.lshift, "RShift": operator.rshift,
    "Eq": operator.eq, "NotEq": operator.ne, "Lt": operator.lt, "LtE": operator.le, "Gt": operator.gt,
    "GtE": operator.ge,
}  # fmt: skip


def in_language(fn: FunctionType) -> bool:
    """Does it only build an expression of the language?"""
    module, name = fn.__module__, fn.__name__
    return (module == gen.__module__ and name in LANGUAGE) or (module == executor_tools.__name__ and name in TOOLS)


def plain_error(kind: Any) -> bool:
    """Is it a class of errors that runs no code of its own when one is made?"""
    if type(kind) is not type or not issubclass(kind, BaseException):
        return False
    own = [vars(base) for base in kind.__mro__ if base.__module__ != "builtins"]
    return not any(name in members for members in own for name in ("__init__", "__new__", "__setattr__"))
