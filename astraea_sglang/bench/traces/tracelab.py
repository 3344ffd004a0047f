"""TraceLab's session rounds: a CSV file, a row a round (one LLM call and the tools after it), a session a program.

    session_id, or id   the session: the program
    arrival_time        when the session comes, in ms from the start; 0 if the column is left out
    round_idx           0, 1, 2, ... within the session
    prefix_len          tokens of the context before that the prompt keeps
    input_len           new tokens after them: the prompt is prefix_len + input_len
    output_len          tokens generated
    tool_wait_after_ms  summed wall time of the tools after the round; 0 on the last

Sources: github.com/uw-syfi/TraceLab, artifacts/trace_facts/csv_export/README.md (the columns, with `id`) and
replay/README.md (both headers; the replay keeps the first prefix_len tokens of what came before and appends input_len).

* prefix_len below what came before (prompt and output): the context was cut, `SegmentPlan.kept`.
* prefix_len above it: the surplus is new to the session, as TraceLab's own replay makes it; it joins `new_prompt`.
* prefix_len of the first round: tokens the provider had cached already. With whom they are shared is not told, so they
  are a `Shared` named after the session: equal to nobody's, as in TraceLab's own replay.

Rows may come in any order, round_idx tells it; a gap in it is an error. Not in the format, and so lost in writing:
classes, tool names, declared lengths, with whom a prefix is shared. Refused in writing: child sessions.
"""

import csv
import io
from collections.abc import Sequence

from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan, Shared
from astraea_sglang.bench.traces.rows import Row, longest, milliseconds
from astraea_sglang.errors import ConfigError

COLUMNS = ("session_id", "arrival_time", "round_idx", "prefix_len", "input_len", "output_len", "tool_wait_after_ms")
REQUIRED = tuple(column for column in COLUMNS if column != "arrival_time")


def read(file: str, text: str) -> list[ProgramPlan]:
    """Which programs are the sessions of a TraceLab CSV? Raises ConfigError with the line of what is wrong."""
    sessions: dict[str, list[Row]] = {}
    for row in _rows(file, text):
        sessions.setdefault(row.name("session_id"), []).append(row)
    if not sessions:
        raise ConfigError(f"{file}:2: there is no row below the header; give a trace with at least one round")
    return [_program(id, rows) for id, rows in sessions.items()]


def write(plans: Sequence[ProgramPlan]) -> str:
    """How are `plans` written as a TraceLab CSV? Raises ConfigError for child sessions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for plan in plans:
        if plan.parent is not None or any(segment.spawns for segment in plan.segments):
            raise ConfigError(f"program {plan.id}: tracelab cannot hold child sessions; write it as dynamo")
        for index, (segment, prompt) in enumerate(zip(plan.segments, plan.prompts(), strict=True)):
            prefix, wait = prompt - segment.new_prompt, milliseconds(segment.tool_s)
            arrival = milliseconds(plan.arrival_s)
            writer.writerow([plan.id, arrival, index, prefix, segment.new_prompt, segment.output, wait])
    return out.getvalue()


def _rows(file: str, text: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = ["session_id" if cell.strip() == "id" else cell.strip() for cell in next(reader)]
        if len(set(header)) < len(header):
            raise ConfigError(f"{file}:1: a column comes twice in {','.join(header)}; keep one of each")
        Row(f"{file}:1", dict.fromkeys(header, "")).only(REQUIRED, COLUMNS)
        for cells in reader:
            where = f"{file}:{reader.line_num}"
            if not cells:
                continue
            if len(cells) != len(header):
                raise ConfigError(
                    f"{where}: {len(cells)} cells under {len(header)} columns; is the file cut off? wanted a cell each"
                )
            named = zip(header, cells, strict=True)
            rows.append(Row(where, {c: cell if c == "session_id" else _number(cell) for c, cell in named}))
    except csv.Error as problem:
        raise ConfigError(f"{file}:{reader.line_num}: the row is not CSV ({problem}); is the file cut off?") from None
    return rows


def _number(cell: str) -> int | float | str:
    """A cell's number as JSON would have it, or the cell itself, which the check of its field then shows."""
    cell = cell.strip()
    if cell.isascii() and cell.isdigit() and len(cell) < 20:
        return int(cell)
    try:
        return cell if "_" in cell else float(cell)
    except ValueError:
        return cell


def _program(id: str, rows: list[Row]) -> ProgramPlan:
    rows = sorted(rows, key=lambda row: row.tokens("round_idx", 0))
    arrival = rows[0].seconds("arrival_time", 0.0)
    prefix: tuple[Shared, ...] = ()
    segments: list[SegmentPlan] = []
    before = 0
    for index, row in enumerate(rows):
        seen = row.tokens("round_idx", 0)
        if seen != index:
            raise row.refused(
                f"session {id} has round {seen} where {index} is wanted; each of 0, 1, 2, ... comes once, from 0 on"
            )
        if row.seconds("arrival_time", 0.0) != arrival:
            raise row.refused(f"session {id} has a second arrival_time; wanted the session's, the same in all its rows")
        kept, new, output = row.tokens("prefix_len", 0), row.tokens("input_len"), row.tokens("output_len")
        wait, last = row.seconds("tool_wait_after_ms"), index == len(rows) - 1
        if last and wait:
            raise row.refused(
                f"session {id} waits {wait:g} s after its last round; is the file cut off? wanted 0 where nothing comes"
            )
        if index == 0:
            prefix = (Shared(id, kept),) if kept else ()
        surplus = max(0, kept - before) if index else 0
        cut = kept if index and kept < before else None
        segments.append(SegmentPlan(surplus + new, output, wait, None if last else "tool", kept=cut))
        before = kept + new + output
    most = longest(segment.output for segment in segments)
    return ProgramPlan(id, "tracelab", arrival, most, tuple(segments), prefix)
