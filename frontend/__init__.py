"""Agents: `sgl` is SGLang's frontend language with tool calls, `program` and `tool` are plain async Python.

    from astraea_sglang import frontend as astraea

    async with astraea.program("researcher", tools=[search]) as p:
        answer = await p.run("Who wrote it?")

Neither is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astraea_sglang.frontend.agent import Program, program
    from astraea_sglang.frontend.reply import Call, Reply, Usage
    from astraea_sglang.frontend.tools import Result, Tool, tool

__all__ = ["Call", "Program", "Reply", "Result", "Tool", "Usage", "program", "tool"]

HOME = {
    "agent": ("Program", "program"),
    "tools": ("Result", "Tool", "tool"),
    "reply": ("Call", "Reply", "Usage"),
}


def __getattr__(name: str) -> Any:
    for module, names in HOME.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
