"""Traces of agent programs that others publish or record, read as plans and written from them.

    tracelab       CSV, a row a round: sessions with tool waits and context compaction
    agentic-trace  JSON of SGLang's bench_serving: conversations, prompt lengths only
    dynamo         JSON lines of Dynamo's agentic replay: sessions, sub-agents, tool waits, prefix blocks
    mooncake       JSON lines of Mooncake (FAST'25): single requests with arrivals and prefix blocks

What every field means, and what a format cannot hold, is in the module of the format. Reading drops nothing unsaid:
what a plan cannot hold is an error that names the file and the line. A file may be gzipped.
"""

import gzip
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from astraea_sglang.bench.plans import ProgramPlan
from astraea_sglang.bench.traces import agentic, dynamo, mooncake, tracelab
from astraea_sglang.errors import ConfigError

_MODULES = {"tracelab": tracelab, "agentic-trace": agentic, "dynamo": dynamo, "mooncake": mooncake}
FORMATS = tuple(_MODULES)


def read(path: Path, format: str | None = None) -> list[ProgramPlan]:
    """Which programs does the trace at `path` hold? In the order of their arrivals, which are as in the file; child
    sessions come with their parents.

    The format is recognised from the content if not given. Raises ConfigError, with the line, when something in it is
    missing, unknown, out of order or more than a plan can hold.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as problem:
        raise ConfigError(f"{path} cannot be read ({problem}); give a trace: text in UTF-8, or that gzipped") from None
    if not text.strip():
        raise ConfigError(f"{path}:1: the file is empty; give a trace in one of: {', '.join(FORMATS)}")
    module = _module(format) if format is not None else _MODULES[_recognised(path, text)]
    plans = module.read(str(path), text)
    by_id = {plan.id: plan for plan in plans}

    def came(plan: ProgramPlan) -> float:
        while plan.parent is not None:
            plan = by_id[plan.parent]
        return plan.arrival_s

    return sorted(plans, key=came)


def write(plans: Sequence[ProgramPlan], path: Path, format: str) -> None:
    """Write `plans` as a trace; the file is replaced at once or not at all.

    Raises ConfigError when the format cannot hold them, or the file cannot be written.
    """
    if not plans:
        raise ConfigError(f"{path}: there is no program to write; a trace holds at least one")
    text = _module(format).write(plans)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="")
        os.replace(part, path)
    except OSError as problem:
        raise ConfigError(f"{path} cannot be written ({problem.strerror}); give another file") from problem


def _module(format: str):
    if format not in _MODULES:
        raise ConfigError(f"--format {format} is unknown; choose one of: {', '.join(FORMATS)}")
    return _MODULES[format]


def _recognised(path: Path, text: str) -> str:
    line = text.strip().splitlines()[0]
    if not line.startswith("{"):
        if "round_idx" in line:
            return "tracelab"
    else:
        try:
            keys = json.loads(line)
        except (ValueError, RecursionError):  # one object over many lines, or a damaged line
            keys = {"conversations"} if '"conversations"' in text else set()
        for key, format in (("conversations", "agentic-trace"), ("request_id", "dynamo"), ("timestamp", "mooncake")):
            if key in keys:
                return format
        if "schema" in keys:  # the header of the later, typed form of Dynamo's rows: its reader says so
            return "dynamo"
    raise ConfigError(
        f"{path}:1: {line[:60]!r} begins no trace that is known; wanted a TraceLab CSV header, a JSON object with "
        "conversations, or JSON lines with request_id or timestamp: type --format to say which it is"
    )
