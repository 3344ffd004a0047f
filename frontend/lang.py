"""SGLang's frontend language without SGLang's engine: the one file of the frontend that imports sglang."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import LazyLoader, find_spec, module_from_spec


@contextmanager
def _engine_deferred() -> Iterator[None]:
    """Import parts of sglang without its `__init__`, which loads torch and transformers: 64 MB in place of 790 MB.

    Afterwards the package is lazy, as importlib has it: the first look at it, such as `import sglang`, runs its
    `__init__` as ever, in the same module.
    """
    if "sglang" in sys.modules:
        yield
        return
    spec = find_spec("sglang")
    if spec is None or spec.loader is None:
        raise ImportError("sglang is missing, and this module extends its language; type: pip install sglang==0.5.23")
    spec.loader = loader = LazyLoader(spec.loader)
    sys.modules["sglang"] = package = module_from_spec(spec)
    try:
        yield
    except BaseException:
        del sys.modules["sglang"]
        raise
    loader.exec_module(package)


with _engine_deferred():
    from sglang.lang import interpreter, tracer
    from sglang.lang.api import (
        assistant,
        assistant_begin,
        assistant_end,
        function,
        gen,
        gen_int,
        gen_string,
        image,
        select,
        set_default_backend,
        system,
        system_begin,
        system_end,
        user,
        user_begin,
        user_end,
    )
    from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
    from sglang.lang.interpreter import StreamExecutor
    from sglang.lang.ir import SglCommitLazy, SglConcateAndAppend, SglExpr, SglExprList, SglGen, SglSelect, SglVariable
    from sglang.utils import http_request

__all__ = [
    "RuntimeEndpoint",
    "SglCommitLazy",
    "SglConcateAndAppend",
    "SglExpr",
    "SglExprList",
    "SglGen",
    "SglSelect",
    "SglVariable",
    "StreamExecutor",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "http_request",
    "image",
    "interpreter",
    "select",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "tracer",  # not used here: a program's first run asks for it, and would find only the engine's sglang
    "user",
    "user_begin",
    "user_end",
]
