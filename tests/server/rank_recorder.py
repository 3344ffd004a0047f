"""A plugin for test_tensor_parallel: what a rank's scheduler tells its program table, and the answers, a line a call.

SGLang loads it in every process, as it does ours. The lines go beside this file: rank0.jsonl, rank1.jsonl.
"""

import functools
import json
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import torch.distributed

from astraea_sglang.program import Program, Segment
from astraea_sglang.table import ProgramTable


def install() -> None:
    for name, member in list(vars(ProgramTable).items()):
        if callable(member) and not name.startswith("_"):
            setattr(ProgramTable, name, recorded(member))


def recorded(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def wrapper(table: ProgramTable, *args: Any, **kwargs: Any) -> Any:
        answer = call(table, *args, **kwargs)
        line = json.dumps([call.__name__, args, kwargs, answer], default=plain)
        with Path(__file__).with_name(f"rank{torch.distributed.get_rank()}.jsonl").open("a") as out:
            out.write(line + "\n")
        return answer

    return wrapper


def plain(value: object) -> object:
    """What stands in the line for a value that JSON has no form for?"""
    if isinstance(value, Segment):
        return value.rid
    if isinstance(value, Program):
        return value.key
    return sorted(value) if isinstance(value, Set) else repr(value)
