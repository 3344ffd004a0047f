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
    from sglang.lang import choices, interpreter, tracer
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
        separate_reasoning,
        set_default_backend,
        system,
        system_begin,
        system_end,
        user,
        user_begin,
        user_end,
        video,
    )
    from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
    from sglang.lang.interpreter import ProgramState, ProgramStateGroup, StreamExecutor
    from sglang.lang.ir import (
        SglCommitLazy,
        SglConcateAndAppend,
        SglConstantText,
        SglExpr,
        SglExprList,
        SglFunction,
        SglGen,
        SglImage,
        SglRoleBegin,
        SglRoleEnd,
        SglSelect,
        SglSeparateReasoning,
        SglVariable,
        SglVarScopeBegin,
        SglVarScopeEnd,
        SglVideo,
    )
    from sglang.utils import http_request

__all__ = [
    "ProgramState",
    "ProgramStateGroup",
    "RuntimeEndpoint",
    "SglCommitLazy",
    "SglConcateAndAppend",
    "SglConstantText",
    "SglExpr",
    "SglExprList",
    "SglFunction",
    "SglGen",
    "SglImage",
    "SglRoleBegin",
    "SglRoleEnd",
    "SglSelect",
    "SglSeparateReasoning",
    "SglVarScopeBegin",
    "SglVarScopeEnd",
    "SglVariable",
    "SglVideo",
    "StreamExecutor",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "choices",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "http_request",
    "image",
    "interpreter",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "tracer",  # not used here: a program's first run asks for it, and would find only the engine's sglang
    "user",
    "user_begin",
    "user_end",
    "video",
]
