"""Mooncake's traces (FAST'25, toolagent_trace.jsonl and its kin): JSON lines, a row a request, a request a program.

    timestamp      when the request comes, in ms from the start
    input_length   tokens of the prompt
    output_length  tokens generated
    hash_ids       an id for each block of 512 tokens of the prompt, the last one often not full: ids are equal where
                   the blocks, and all before them, are

Source: github.com/kvcache-ai/Mooncake, FAST25-release/README.md, and the paper's appendix. A row is a program of one
segment named `request-N` (N counts rows from 0): blocks are its prefix, the last one its new prompt. Files of other
tools with blocks of another size are read, too: the size is the one that fits all rows, 512 if that does (blocks.py).

Rows may come in any order, their timestamps tell it (SGLang's own reader sorts, too). Sessions are not in the format.
Lost in writing: ids, classes, declared lengths; what is shared is kept by whole blocks. Refused in writing: programs
of more than one segment, and child sessions.
"""

from collections.abc import Sequence

from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan
from astraea_sglang.bench.traces.blocks import Blocks, block_size, hash_ids, shared
from astraea_sglang.bench.traces.rows import json_lines, json_rows, longest, milliseconds
from astraea_sglang.errors import ConfigError

FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")


def read(file: str, text: str) -> list[ProgramPlan]:
    """Which programs are the requests of a Mooncake trace? Raises ConfigError with the line of what is wrong."""
    rows = list(json_rows(file, text))
    for row in rows:
        row.only(FIELDS)
    size = block_size(rows)
    plans = []
    for index, row in enumerate(rows):
        prefix, output = shared(hash_ids(row), size), row.tokens("output_length")
        new = row.tokens("input_length") - sum(run.tokens for run in prefix)
        segment = SegmentPlan(new, output, 0.0, None)
        arrival, most = row.seconds("timestamp"), longest([output])
        plans.append(ProgramPlan(f"request-{index}", "mooncake", arrival, most, (segment,), prefix))
    return plans


def write(plans: Sequence[ProgramPlan]) -> str:
    """How are `plans` written as a Mooncake trace? Raises ConfigError for programs of more than one segment."""
    blocks = Blocks(plans)
    rows = []
    for plan in plans:
        first, *more = plan.segments
        if more or plan.parent is not None or first.spawns:
            raise ConfigError(f"program {plan.id}: mooncake holds single requests; write it as tracelab or dynamo")
        row = {
            "timestamp": milliseconds(plan.arrival_s),
            "input_length": next(plan.prompts()),
            "output_length": first.output,
            "hash_ids": next(blocks.of(plan)),
        }
        rows.append(row)
    return json_lines(rows)
