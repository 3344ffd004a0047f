"""What would a person see of the programs? JSON-ready rows, in seconds and tokens."""

from typing import Any, NamedTuple

from astraea_sglang.program import Program


class Finished(NamedTuple):
    """A program that is over: how it went; `why` is final, ended, answered, reaped or forgotten."""

    id: str
    program_class: str
    why: str
    jct: float
    wait: float
    segments: int
    attained: int
    identity: str
    tools: list[str]
    parent_id: str | None


def finished(program: Program, why: str, now: float) -> Finished:
    """How did a program go that is over now?"""
    return Finished(
        id=program.id,
        program_class=program.program_class,
        why=why,
        jct=now - program.arrived,
        wait=program.waits.until(now),
        segments=program.segments,
        attained=program.attained,
        identity=program.identity,
        tools=program.calls.called,
        parent_id=program.parent_id,
    )


def live(program: Program, now: float) -> dict[str, Any]:
    """Where is a program that is not over?"""
    return {
        "id": program.id,
        "class": program.program_class,
        "parent_id": program.parent_id,
        "anonymous": program.anonymous,
        "identity": program.identity,
        "state": program.state,
        "segments": program.segments,
        "attained_tokens": program.attained,
        "wait_s": round(program.waits.until(now), 3),
        "queue_level": program.level,
        "node": program.node,
        "next_tool": program.next_tool,
        "tools": program.calls.called,
        "running_tools": program.calls.names(),
        "segments_to_come": round(program.later.segments, 1),
        "tokens_to_come": round(program.later.output),
        "age_s": round(now - program.arrived, 3),
    }
