"""What did each policy make of the same programs? JSON, CSV, a table for the terminal, a picture."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.table import Table

Result = dict[str, Any]

KEYS: tuple[str, ...] = (
    "workload", "load", "policy", "seed", "programs", "device", "mixed_chunk",
    "jct_mean", "jct_p50", "jct_p95", "jct_p99", "engine_mean", "engine_p95", "slowdown_mean", "slowdown_max", "jain",
    "recomputed_tokens", "return_hit_rate", "emulated_s", "wall_s", "finish_sha256",
)  # fmt: skip
# Okabe and Ito's colours, which colour-blind people can tell apart, and dashes for print.
COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7", "#f0e442")
DASHES = ("-", "--", "-.", ":")


def save(results: Sequence[Result], folder: Path) -> None:
    """Write `summary.json` (a list with one object per run), `summary.csv` and `jct.png` into `folder`."""
    rows = [{key: result[key] for key in KEYS} for result in results]
    (folder / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, KEYS)
        writer.writeheader()
        writer.writerows(rows)
    draw(results, folder / "jct.png")


ROWS = (  # key, label, form, and whether a ratio to the base policy is of use
    ("jct_mean", "JCT mean s", "{:.1f}", True),
    ("jct_p50", "JCT p50", "{:.1f}", True),
    ("jct_p95", "JCT p95", "{:.1f}", True),
    ("jct_p99", "JCT p99", "{:.1f}", True),
    ("engine_mean", "engine mean s", "{:.1f}", True),
    ("engine_p95", "engine p95", "{:.1f}", True),
    ("slowdown_mean", "slowdown mean", "{:.2f}", False),
    ("slowdown_max", "slowdown max", "{:.1f}", False),
    ("jain", "Jain index", "{:.2f}", False),
    ("recomputed_tokens", "recomputed", "{:,.0f}", True),
    ("return_hit_rate", "return hits", "{:.0%}", False),
    ("emulated_s", "emulated s", "{:.0f}", False),
    ("wall_s", "wall s", "{:.0f}", False),
)


def table(results: Sequence[Result]) -> Table:
    """The runs for a terminal: a column per policy, means over its seeds, in brackets ratios to fcfs if it ran."""
    policies = by_policy(results)
    base = policies.get("fcfs")
    seeds = sorted({result["seed"] for result in results})
    shown = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    shown.add_column("")
    for policy, runs in policies.items():
        missing = "" if len(runs) == len(seeds) else f"\n{len(runs)} of {len(seeds)} seeds"
        shown.add_column(policy + missing, justify="right")
    for key, label, form, compared in ROWS:
        against = _mean(base, key) if base and compared else 0.0
        cells = [_cell(form, _mean(runs, key), against) for runs in policies.values()]
        shown.add_row(label, *cells)
    return shown


def title(result: Result) -> str:
    """What was run? One line, for above the table and the picture."""
    mixed = ", mixed chunks" if result["mixed_chunk"] else ""
    return (
        f"{result['workload']} at {result['load']:g} x the knee of fcfs, {result['programs']} programs a run, "
        f"{result['device']}{mixed}"
    )


def by_policy(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Which runs belong to each policy? Policies in the order of their first run."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result["policy"], []).append(result)
    return grouped


def draw(results: Sequence[Result], target: Path) -> None:
    """Draw how JCT and engine time are distributed under each policy: two panels of cumulative shares, a PNG."""
    from matplotlib.figure import Figure  # a second to import: only here

    figure = Figure(figsize=(12, 4.5), layout="constrained", dpi=100)
    panels = figure.subplots(1, 2, sharey=True)
    panes = (("jct", "JCT, seconds (log)"), ("engine", "engine time = JCT - tools, seconds (log)"))
    for panel, (key, label) in zip(panels, panes, strict=True):
        for i, (policy, runs) in enumerate(by_policy(results).items()):
            values = sorted(program[key] for run in runs for program in run["per_program"])
            shares = [(n + 1) / len(values) for n in range(len(values))]
            style = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
            panel.step(values, shares, where="post", label=policy, linewidth=1.8, **style)
        panel.set_xscale("log")
        panel.set_xlabel(label)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("share of programs")
    panels[0].legend(frameon=False, loc="upper left")
    figure.suptitle(title(results[0]), x=0.01, ha="left")
    figure.savefig(target)


def _cell(form: str, value: float, base: float) -> str:
    return f"{form.format(value)} ({value / base:.2f})" if base else form.format(value)


def _mean(runs: Sequence[Result], key: str) -> float:
    return fmean(run[key] for run in runs)
