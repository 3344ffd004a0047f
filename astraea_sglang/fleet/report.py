"""What did each policy make of the same fleet? Figures of runs side by side: for a terminal, as markdown, as JSON."""

import json
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from astraea_sglang.fleet.runs import Run


class Row(NamedTuple):
    """One line of the report: its key in JSON, its label, how its value prints, and whether less of it is better."""

    key: str
    label: str
    form: str
    less_is_better: bool | None


ROWS = (
    Row("jct_mean", "JCT, mean", "{:.1f} s", True),
    Row("jct_p50", "JCT, p50", "{:.1f} s", True),
    Row("jct_p95", "JCT, p95", "{:.1f} s", True),
    Row("jct_p99", "JCT, p99", "{:.1f} s", True),
    Row("tool_mean", "in tools, mean", "{:.1f} s", None),
    Row("engine_mean", "in the engine (JCT - tools), mean", "{:.1f} s", True),
    Row("queue_mean", "of that, in the queue, mean", "{:.1f} s", True),
    Row("makespan", "makespan of the fleet", "{:.1f} s", True),
    Row("prompt_tokens", "prompt tokens", "{:,.0f}", None),
    Row("cached_tokens", "of those, from cache", "{:,.0f}", False),
    Row("uncached_tokens", "of those, prefilled", "{:,.0f}", True),
    Row("recomputed_tokens", "prefilled again after an eviction", "{:,.0f}", True),
    Row("return_hits", "of a program's context, found after a tool", "{:.0%}", False),
    Row("output_tokens", "output tokens", "{:,.0f}", None),
    Row("evicted_tokens", "KV tokens evicted (engine)", "{:,.0f}", None),
    Row("retracted", "requests retracted (engine)", "{:,.0f}", True),
    Row("cpu", "scheduler process CPU (engine)", "{:.1f} s", True),
    Row("finished", "programs finished", "{:.0f}", False),
)


def percentile(values: Sequence[float], p: float) -> float:
    """Which value do p% of `values` not exceed? Nearest rank: the smallest such value, always one that was measured.

    Hence p99 of fewer than 100 programs, and p95 of fewer than 20, is the slowest one. NaN of no values.
    """
    return sorted(values)[max(0, math.ceil(len(values) * p / 100) - 1)] if values else math.nan


def figures(run: Run) -> dict[str, float]:
    """What are the run's headline numbers, by the keys of ROWS? Times (seconds) are over finished programs only.

    Token counts are over every segment that ended, those of lost programs too. NaN where nothing finished.
    """
    done = [program for program in run.programs if program.error is None]
    jct = [program.finished - program.arrival for program in done]
    tools = [sum(tool.end - tool.start for tool in program.tools) for program in done]
    queues = [sum(segment.queue_s for segment in program.segments) for program in done]
    segments = [segment for program in run.programs for segment in program.segments]
    known = [
        context for program in run.programs for context in zip(program.segments, program.segments[1:], strict=False)
    ]
    context = sum(before.prompt_tokens + before.output_tokens - 1 for before, _ in known)
    lost = sum(after.recomputed_tokens for _, after in known)
    prompt, cached = sum(s.prompt_tokens for s in segments), sum(s.cached_tokens for s in segments)
    return {
        "jct_mean": _mean(jct),
        "jct_p50": percentile(jct, 50),
        "jct_p95": percentile(jct, 95),
        "jct_p99": percentile(jct, 99),
        "tool_mean": _mean(tools),
        "engine_mean": _mean(jct) - _mean(tools),
        "queue_mean": _mean(queues),
        "makespan": max((program.finished for program in run.programs), default=math.nan),
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "uncached_tokens": prompt - cached,
        "recomputed_tokens": sum(s.recomputed_tokens for s in segments),
        "return_hits": 1 - lost / context if context else math.nan,
        "output_tokens": sum(s.output_tokens for s in segments),
        "evicted_tokens": run.engine.get("evicted_tokens_total", math.nan),
        "retracted": run.engine.get("num_retracted_requests_total", math.nan),
        "cpu": run.engine.get("scheduler_process_cpu_seconds_total", math.nan),
        "finished": len(done),
    }


def table(runs: Sequence[Run]) -> Table:
    """The report for a terminal: one column a policy, then each later policy over the first, green where better."""
    first, *others = runs
    shown = Table(title=f"{len(first.programs)} agent programs, same seed, same server flags but the policy")
    shown.add_column("")
    for run in runs:
        shown.add_column(run.policy, justify="right")
    for run in others:
        shown.add_column(f"{run.policy} / {first.policy}", justify="right")
    for row, values in _rows(runs):
        ratios = [_ratio(value, values[0]) for value in values[1:]]
        shown.add_row(row.label, *(_print(row, v) for v in values), *(_coloured(row, r) for r in ratios))
    return shown


def markdown(runs: Sequence[Run]) -> str:
    """The report as a GitHub table with its conditions below, ready to paste."""
    first, *others = runs
    head = ["", *(run.policy for run in runs), *(f"{run.policy} / {first.policy}" for run in others)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row, values in _rows(runs):
        lines.append(
            [row.label, *(_print(row, v) for v in values), *(_times(_ratio(v, values[0])) for v in values[1:])]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{conditions(first)}\n"


def conditions(run: Run) -> str:
    """Under which conditions do the figures hold? One paragraph, the same for every run of a report."""
    s, m = run.settings, run.settings["machine"]
    return (
        f"{len(run.programs)} BFCL v4 multi_turn_base programs, seed {s['seed']}, Poisson arrivals, mean gap "
        f"{s['gap_s']:g} s; {s['model']} on {m['accelerator'] or 'CPU'}, KV pool of {s['kv_tokens']} tokens, at most "
        f"{s['max_running_requests']} running requests, SGLang {s['sglang']}; {m['cpu']}, {m['cores']} cores, "
        f"{m['memory_gib']} GiB, Python {m['python']}. Output is really generated, greedily, constrained to the "
        "reference call, which is parsed from the output and really executed; tool latency is sampled (InferCept "
        f"table x {s['factor']:g}) and slept. Percentiles are by nearest rank. One run each: a few percent are noise."
    )


def as_json(runs: Sequence[Run]) -> str:
    """The report as JSON: `settings` once, `figures` by policy; NaN is null."""
    by_policy = {run.policy: {k: None if math.isnan(v) else v for k, v in figures(run).items()} for run in runs}
    return json.dumps({"settings": runs[0].settings, "figures": by_policy}, indent=1) + "\n"


def _rows(runs: Sequence[Run]) -> list[tuple[Row, list[float]]]:
    columns = [figures(run) for run in runs]
    return [(row, [column[row.key] for column in columns]) for row in ROWS]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _ratio(value: float, base: float) -> float:
    return value / base if base else math.nan


def _print(row: Row, value: float) -> str:
    return "-" if math.isnan(value) else row.form.format(value)


def _times(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.2f}"


def _coloured(row: Row, ratio: float) -> str:
    if row.less_is_better is None or math.isnan(ratio) or f"{ratio:.2f}" == "1.00":
        return _times(ratio)
    return f"[{'green' if (ratio < 1) == row.less_is_better else 'red'}]{_times(ratio)}[/]"
