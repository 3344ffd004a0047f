"""Dynamo's agentic Mooncake rows (the form without a header): JSON lines, a row a request, a session a program.

    request_id     names the row
    session_id     its session; the request_id if left out
    request_kind   foreground, agent, background_agent as Dynamo's converter has it: our program_class
    input_length, output_length                       tokens; also input_tokens, output_tokens
    hash_ids       an id for each block of the prompt, equal where the prompts are equal up to there (see blocks.py)
    timestamp      ms from the start; counts for rows that wait for nothing only; also created_time
    wait_for       the requests that must have ended
    delay, tool_wait_ms       ms to wait after that, tools apart from the rest; they add up; also delay_ms
    tool_events    the tools meanwhile: tool_class, duration_ms and more; the tool of a plan is the longest
    branches       the first requests of the sub-agents that begin when this one ends
    prefix_reset, output_token_ids                    say nothing that a plan needs; not read

Sources: github.com/ai-dynamo/dynamo, lib/data-gen/src/mooncake.rs (AgenticMooncakeRow), request_trace/agentic.rs (who
waits for whom, and why) and lib/mocker/src/loadgen/trace.rs (how a row becomes ready); pull requests 9728 and 13586.

* The first row of a session waits for nothing, or for one request of its parent session, whose child it then is: its
  delay becomes the child's `arrival_s`, seconds after its parent's segment (a plan may leave that unused).
* Every later row waits for the one before, and for the last row of each child that that one spawned.
* Dynamo counts delay and tool_wait_ms from the end of the last it waits for, a plan from the end of its own segment:
  they differ where a row waits for children.
* The blocks of a first prompt are its prefix, the last one its new prompt. In later prompts they tell what is kept:
  all that came before if the blocks of the prompt before come again and the prompt is longer than that and its output,
  else the leading blocks that are equal. Whether a longer prompt left the output out is not in the format.

Other shapes (parallel requests of one session, background agents nobody waits for) and priorities are more than a
plan holds: errors. Rows of a session come in their order. Lost in writing: declared lengths; blocks are of 512 tokens,
and what is shared or kept of part of one is lost.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan
from astraea_sglang.bench.traces.blocks import Blocks, block_size, hash_ids, shared
from astraea_sglang.bench.traces.rows import Row, json_lines, json_rows, longest, milliseconds
from astraea_sglang.errors import ConfigError
from astraea_sglang.hints import NAME_LENGTH

ALIASES = {
    "input_tokens": "input_length",
    "output_tokens": "output_length",
    "created_time": "timestamp",
    "delay_ms": "delay",
}
REQUIRED = ("request_id", "input_length", "output_length", "hash_ids")
OPTIONAL = (
    "session_id", "request_kind", "timestamp", "wait_for", "delay", "tool_wait_ms", "tool_events", "branches",
    "prefix_reset", "output_token_ids", "priority", "strict_priority", "policy_class",
)  # fmt: skip
ORDERING = ("priority", "strict_priority", "policy_class")
REQUEST_ID_LENGTH = 1024  # characters: ours are a program's id and a number
TOOL = "tool"  # the name of a tool that has none


@dataclass(frozen=True, slots=True)
class _Call:
    row: Row
    id: str
    session: str
    index: int
    waits: frozenset[str]
    branches: tuple[str, ...]


class _Sessions(dict[str, list[_Call]]):
    """Sessions by name; `calls` by request id."""

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__()
        self.calls: dict[str, _Call] = {}
        self._spawned: dict[str, list[str]] = {}
        for row in rows:
            id = row.name("request_id", REQUEST_ID_LENGTH)
            session = row.name("session_id") if row.fields.get("session_id") is not None else row.name("request_id")
            if id in self.calls:
                raise row.refused(f"request_id {id} comes twice; wanted another for each row")
            calls = self.setdefault(session, [])
            waits = frozenset(row.names("wait_for", REQUEST_ID_LENGTH))
            branches = tuple(row.names("branches", REQUEST_ID_LENGTH))
            self.calls[id] = call = _Call(row, id, session, len(calls), waits, branches)
            calls.append(call)
        for call in self.calls.values():
            if unknown := sorted(id for id in {*call.waits, *call.branches} if id not in self.calls):
                raise call.row.refused(f"request {unknown[0]} is not in the file; is it cut off?")
        for session, calls in self.items():
            if (waited := self.spawner(session)) is not None:
                self._spawned.setdefault(waited.id, []).append(session)
                self._check_root(calls[0])

    def spawner(self, session: str) -> _Call | None:
        """After which call does a session begin? None if it is no child. Raises ConfigError if after several."""
        first = self[session][0]
        others = [self.calls[id] for id in first.waits if self.calls[id].session != session]
        if len(first.waits) > 1 or len(others) < len(first.waits):
            raise first.row.refused(
                f"session {session} begins with a request that waits for {', '.join(sorted(first.waits))}; "
                "wanted none, or one request of another session: rows of a session come in their order"
            )
        return others[0] if others else None

    def spawned(self, call: _Call) -> tuple[str, ...]:
        """Which sessions begin when a call ends? In the order of its branches, then of the file."""
        children = self._spawned.get(call.id, [])
        listed = [self.calls[id].session for id in call.branches]
        for id, session in zip(call.branches, listed, strict=True):
            if session not in children or self.calls[id].index:
                raise call.row.refused(f"branch {id} does not begin a session by waiting for {call.id}; wanted both")
        return tuple(dict.fromkeys([*listed, *children]))

    def _check_root(self, first: _Call) -> None:
        seen: set[str] = set()
        call: _Call | None = first
        while call is not None:
            if call.session in seen:
                raise first.row.refused(
                    f"session {first.session} waits for itself by way of others; wanted a beginning"
                )
            seen.add(call.session)
            call = self.spawner(call.session)


def read(file: str, text: str) -> list[ProgramPlan]:
    """Which programs are the sessions of agentic Mooncake rows? Raises ConfigError with the line of what is wrong."""
    rows = [_row(row) for row in json_rows(file, text)]
    size = block_size(rows)
    sessions = _Sessions(rows)
    return [_program(id, calls, sessions, size) for id, calls in sessions.items()]


def write(plans: Sequence[ProgramPlan]) -> str:
    """How are `plans` written as agentic Mooncake rows? Raises ConfigError when a parent or a child is not there."""
    by_id = {plan.id: plan for plan in plans}
    spawner = {child: (plan.id, k) for plan in plans for k, s in enumerate(plan.segments) for child in s.spawns}
    for plan in plans:
        if spawner.get(plan.id, (None,))[0] != plan.parent:
            raise ConfigError(f"program {plan.id}: its parent is {plan.parent}, which does not spawn it; wanted both")
    if missing := sorted(spawner.keys() - by_id.keys()):
        raise ConfigError(f"program {missing[0]} is spawned but is not there; give all plans of a tree")
    blocks = Blocks(plans)
    return json_lines(row for plan in plans for row in _rows(plan, by_id, spawner.get(plan.id), blocks))


def _row(row: Row) -> Row:
    if "schema" in row.fields:
        raise row.refused(
            f"schema {row.fields['schema']!r} is Dynamo's later, typed form; wanted rows without a header, as of "
            "request_trace_to_mooncake --agentic in Dynamo 1.2 to 1.4"
        )
    fields = {ALIASES.get(key, key): value for key, value in row.fields.items()}
    if len(fields) < len(row.fields):
        raise row.refused(
            "a field comes under two names; keep one of " + ", ".join(f"{a}/{b}" for a, b in ALIASES.items())
        )
    row = Row(row.where, fields)
    row.only(REQUIRED, OPTIONAL)
    if ordered := [name for name in ORDERING if fields.get(name)]:
        raise row.refused(f"{ordered[0]} is set; a plan has no priorities: remove it from the rows")
    return row


def _program(id: str, calls: list[_Call], sessions: _Sessions, size: int) -> ProgramPlan:
    first, spawner = calls[0], sessions.spawner(id)
    wait = _wait(first.row)
    if spawner is None and (wait or first.row.fields.get("timestamp") is None):
        raise first.row.refused(f"session {id} begins after nothing; wanted a timestamp, and no delay or tool_wait_ms")
    prefix = shared(hash_ids(first.row), size)
    prompt = sum(run.tokens for run in prefix)
    segments: list[SegmentPlan] = []
    kept: int | None = None
    for call, after in zip(calls, [*calls[1:], None], strict=True):
        tokens, output = call.row.tokens("input_length"), call.row.tokens("output_length")
        new = tokens - (prompt if kept is None else kept)
        spawns = sessions.spawned(call)
        tool_s, tool = (0.0, None) if after is None else _tool(call, after, spawns, sessions)
        segments.append(SegmentPlan(new, output, tool_s, tool, spawns, kept))
        prompt = tokens + output
        kept = None if after is None else _kept(call.row, after.row, prompt, size)
    arrival = wait if spawner is not None else first.row.seconds("timestamp")
    kind = first.row.fields.get("request_kind") is not None
    name = first.row.name("request_kind", NAME_LENGTH) if kind else "dynamo"
    most = longest(segment.output for segment in segments)
    return ProgramPlan(id, name, arrival, most, tuple(segments), prefix, spawner and spawner.session)


def _wait(row: Row) -> float:
    return row.seconds("delay", 0.0) + row.seconds("tool_wait_ms", 0.0)


def _tool(call: _Call, after: _Call, spawns: tuple[str, ...], sessions: _Sessions) -> tuple[float, str]:
    """Which tool runs for how many seconds between two calls? Raises ConfigError if they wait for something else."""
    wanted = {call.id, *(sessions[child][-1].id for child in spawns)}
    if call.id not in after.waits:
        raise after.row.refused(f"request {after.id} does not wait for {call.id}, which is before it in its session; "
                                "a plan holds no parallel requests: wanted that, or a session of its own")  # fmt: skip
    if unjoined := sorted(wanted - after.waits):
        raise after.row.refused(
            f"request {after.id} does not wait for {unjoined[0]}, the last of a session that {call.id} began; a plan "
            "holds no background agents: wanted that, or a timestamp in place of that session's wait_for"
        )
    if more := sorted(after.waits - wanted):
        raise after.row.refused(
            f"request {after.id} waits for {more[0]}, too; wanted the request before it, and the last of each "
            "session that that one began"
        )
    events = after.row.fields.get("tool_events") or []
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise after.row.refused(
            "tool_events is no list of objects; wanted one with tool_class and duration_ms for each"
        )
    rows = [Row(f"{after.row.where}: tool_events", event) for event in events]
    tools = [(row.seconds("duration_ms"), row.name("tool_class", NAME_LENGTH)) for row in rows]
    return _wait(after.row), max(tools, key=lambda tool: tool[0], default=(0.0, TOOL))[1]


def _kept(row: Row, after: Row, before: int, size: int) -> int | None:
    """How many of the `before` tokens of prompt and output does the next prompt begin with? None for all."""
    tokens, full = after.tokens("input_length"), row.tokens("input_length") // size
    pairs = zip(hash_ids(row)[:full], hash_ids(after), strict=False)
    equal = next((index for index, (one, other) in enumerate(pairs) if one != other), min(full, len(hash_ids(after))))
    return None if equal == full and tokens > before else min(equal * size, tokens - 1)


def _rows(
    plan: ProgramPlan, by_id: Mapping[str, ProgramPlan], spawner: tuple[str, int] | None, blocks: Blocks
) -> Iterator[dict[str, Any]]:
    before: SegmentPlan | None = None
    for index, (segment, prompt, ids) in enumerate(zip(plan.segments, plan.prompts(), blocks.of(plan), strict=True)):
        row: dict[str, Any] = {
            "request_id": f"{plan.id}:{index}",
            "session_id": plan.id,
            "request_kind": plan.program_class,
            "input_length": prompt,
            "output_length": segment.output,
            "hash_ids": ids,
            "prefix_reset": index == 0,
        }
        if before is not None:
            row["wait_for"] = [f"{plan.id}:{index - 1}", *(_last(by_id[child]) for child in before.spawns)]
            row["tool_wait_ms"] = milliseconds(before.tool_s)
            if before.tool not in (None, TOOL):
                row["tool_events"] = [_event(row["request_id"], before)]
        elif spawner is not None:
            row |= {"wait_for": [f"{spawner[0]}:{spawner[1]}"], "delay": milliseconds(plan.arrival_s)}
        else:
            row["timestamp"] = milliseconds(plan.arrival_s)
        if segment.spawns:
            row["branches"] = [f"{child}:0" for child in segment.spawns]
        yield row
        before = segment


def _last(plan: ProgramPlan) -> str:
    return f"{plan.id}:{len(plan.segments) - 1}"


def _event(id: str, segment: SegmentPlan) -> dict[str, Any]:
    duration = milliseconds(segment.tool_s)
    return {
        "tool_call_id": id,
        "tool_class": segment.tool,
        "started_at_unix_ms": 0,  # a plan has no calendar
        "ended_at_unix_ms": round(duration),
        "duration_ms": duration,
        "status": "succeeded",
    }
