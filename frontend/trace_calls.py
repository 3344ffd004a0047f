"""May a call be made while a program is traced? Only where it can do nothing but give a value."""

from typing import Any

from astraea_sglang.frontend import executor_tools
from astraea_sglang.frontend.lang import gen

LANGUAGE = {"gen", "gen_int", "gen_string", "select", "image", "video", "separate_reasoning", "function"} | {
    role + part for role in ("system", "user", "assistant") for part in ("", "_begin", "_end")
}
TOOLS = {"tool", "parallel", "variable"}
PURE = {"re", "json", "math", "string", "textwrap", "itertools", "functools", "operator", "collections", "copy", "ast"}
IMPURE = {
    "open", "input", "exec", "eval", "compile", "__import__", "globals", "locals", "vars", "breakpoint", "setattr",
    "delattr", "id", "hash",
}  # fmt: skip
# Builtins that take containers apart without asking what is in them.
SHAPED = {
    "zip", "enumerate", "list", "tuple", "dict", "set", "frozenset", "reversed", "len", "iter", "next", "map", "filter",
    "getattr", "callable", "isinstance",
}  # fmt: skip
# Functions that call those they are given.
CALLING = {
    "map", "filter", "sorted", "min", "max", "reduce", "starmap", "accumulate", "groupby", "takewhile", "dropwhile",
    "filterfalse", "sub", "subn",
}  # fmt: skip
CHANGING = {
    "append", "extend", "insert", "pop", "popitem", "remove", "clear", "update", "setdefault", "add", "discard", "sort",
    "reverse", "appendleft", "popleft", "extendleft",
}  # fmt: skip


def in_language(fn: Any) -> bool:
    """Does it only build an expression of the language?"""
    module, name = getattr(fn, "__module__", None), getattr(fn, "__name__", "")
    return (module == gen.__module__ and name in LANGUAGE) or (module == executor_tools.__name__ and name in TOOLS)


def is_pure(fn: Any) -> bool:
    """Does it give the same for the same, and do nothing else than perhaps change its container?"""
    owner = getattr(fn, "__self__", None)
    module = getattr(fn, "__module__", None) or getattr(getattr(fn, "__objclass__", None), "__module__", None)
    module = module or type(fn if owner is None else owner).__module__
    name = getattr(fn, "__name__", "")
    return name not in IMPURE if module == "builtins" else module.split(".")[0].lstrip("_") in PURE
