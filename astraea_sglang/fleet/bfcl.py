"""Agent tasks with tools that really run: BFCL v4 `multi_turn_base` from the `bfcl-eval` wheel (Apache-2.0).

The wheel is imported in place, without the packages it declares: the eight tool classes used here need none of them.
"""

import ast
import copy
import functools
import importlib
import json
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astraea_sglang.wheels import fetch_wheel

VERSION = "2026.3.23"
SHA256 = "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a"

BACKENDS = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
MODULES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "TwitterAPI": "posting_api",
    "VehicleControlAPI": "vehicle_control",
}
STATELESS = {"MathAPI"}


@dataclass(frozen=True, slots=True)
class Task:
    """What does one agent have to do? `turns[i]` is what the user says, `calls[i]` the reference calls that answer it.

    A turn may have no calls. `tools` names tool classes, sorted, so that equal tool sets make equal prompts;
    `scenario` is the state those tools start from, by class name.
    """

    id: str
    turns: tuple[str, ...]
    calls: tuple[tuple[str, ...], ...]
    tools: tuple[str, ...]
    scenario: Mapping[str, Any]


def tasks() -> list[Task]:
    """Which tasks are there? The 200 of `multi_turn_base` in file order; ModelError if the wheel cannot be had."""
    answers = {row["id"]: row["ground_truth"] for row in _rows("possible_answer/BFCL_v4_multi_turn_base.json")}
    return [
        Task(
            id=row["id"],
            turns=tuple("\n".join(message["content"] for message in turn) for turn in row["question"]),
            calls=tuple(tuple(turn) for turn in answers[row["id"]]),
            tools=tuple(sorted(row["involved_classes"])),
            scenario=row["initial_config"],
        )
        for row in _rows("BFCL_v4_multi_turn_base.json")
    ]


class Toolbox:
    """What can the agent of one task do, and what does each call answer? Every instance has state of its own."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._functions: dict[str, Callable[..., Any]] = {}
        for name in task.tools:
            tool = _backend(name)()
            if name not in STATELESS:
                tool._load_scenario(copy.deepcopy(task.scenario.get(name, {})))
            self._functions |= {f: getattr(tool, f) for f in dir(tool) if not f.startswith("_")}

    def signatures(self) -> str:
        """Which functions may the model call? One `name(parameter: type, ...): purpose` a line, 370 to 910 tokens."""
        return "\n".join(_signature(d) for name in self._task.tools for d in _documents(name))

    def call(self, source: str) -> str:
        """What does the tool answer to this call, as text? A failing or malformed call answers with its error.

        `source` is model output: it is parsed, never evaluated (see `parse_call`).
        """
        try:
            name, args, kwargs = parse_call(source)
            if not callable(function := self._functions.get(name)):
                raise ValueError(f"no tool named {name!r}")
            result = function(*args, **kwargs)
        except Exception as problem:  # whatever a tool raises is data for the agent, as in BFCL's own harness
            return f"Error during execution: {problem}"
        return result if isinstance(result, str) else json.dumps(result, default=str)


def parse_call(source: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Which function is called, with which values? Literal arguments only: `cd(folder='a')` -> ("cd", [], {...}).

    Raises SyntaxError or ValueError for anything else: attributes, nested calls, names, `*args`, several statements.
    """
    match ast.parse(source.strip(), mode="eval").body:
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            positional = [ast.literal_eval(value) for value in args]
            named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in keywords if keyword.arg}
            if len(named) == len(keywords):
                return name, positional, named
    raise ValueError(f"{source[:80]!r} is no call with literal arguments; write name(key=value, ...)")


def _signature(document: Mapping[str, Any]) -> str:
    parameters = ", ".join(f"{name}: {p['type']}" for name, p in document["parameters"]["properties"].items())
    purpose = document["description"].partition("Tool description: ")[2].partition(".")[0]
    return f"{document['name']}({parameters}): {purpose}"


@functools.cache
def _wheel() -> Path:
    return fetch_wheel("bfcl-eval", VERSION, SHA256)


def _rows(name: str) -> list[dict[str, Any]]:
    with zipfile.ZipFile(_wheel()) as wheel:
        return [json.loads(line) for line in wheel.read(f"bfcl_eval/data/{name}").decode().splitlines()]


@functools.cache
def _documents(tool: str) -> list[dict[str, Any]]:
    return _rows(f"multi_turn_func_doc/{MODULES[tool]}.json")


@functools.cache
def _backend(tool: str) -> type[Any]:
    if str(_wheel()) not in sys.path:
        sys.path.insert(0, str(_wheel()))  # a pure-Python wheel is a zip that Python imports from as it is
    return getattr(importlib.import_module(f"{BACKENDS}.{MODULES[tool]}"), tool)
