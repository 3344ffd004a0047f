"""One-line builders of tables, segments and runs."""

from astraea_sglang.config import Config
from astraea_sglang.hints import Hints
from astraea_sglang.structure import parse
from astraea_sglang.table import ProgramTable

CHAIN = parse(
    {
        "nodes": [
            {"id": "plan", "kind": "segment", "expected_tokens": 40, "next": ["act"]},
            {"id": "act", "kind": "segment", "expected_tokens": 300, "new_tokens": 50},
        ]
    }
)


def table(**settings) -> ProgramTable:
    return ProgramTable(Config(**settings))


def arrive(t: ProgramTable, rid: str, program: str | None = "p", **hints):
    return t.arrive(rid, Hints(program_id=program, **hints), prompt_tokens=100, max_new_tokens=512)


def run(t: ProgramTable, segment, tokens: int, *, seconds: float = 1.0):
    t.start(segment, 100)
    t.advance(t.now + seconds)
    t.serve(segment, tokens)
    t.finish(segment)
