"""What did each policy make of the same programs? A table for the terminal; JSON, CSV, pictures and a page to keep."""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from astraea_sglang.bench import page, plots
from astraea_sglang.bench.stats import BASE, BOUND, LIMIT, Line, Result, capacities, compare, scenarios, sweeps
from astraea_sglang.errors import ConfigError

KEYS: tuple[str, ...] = (
    "workload", "load", "arrivals", "policy", "seed", "programs", "device", "mixed_chunk", "overlap", "pool_tokens",
    "max_running", "jct_mean", "jct_p50", "jct_p95", "jct_p99", "engine_mean", "engine_p95", "engine_p99",
    "slowdown_mean", "slowdown_max", "jain", "throughput", "recomputed_tokens", "return_hit_rate", "queue_mean",
    "queue_p95", "passes", "stalls", "emulated_s", "wall_s", "sglang", "finish_sha256",
)  # fmt: skip


class Column(NamedTuple):
    """A figure in a table: its key, label and form, whether a ratio to BASE is of use.

    `width` is that of the narrowest terminal where a table with a row per policy has it.
    """

    key: str
    label: str
    form: str
    compared: bool
    width: int = 200


COLUMNS = (
    Column("jct_mean", "JCT mean s", "{:.1f}", True, 0),
    Column("jct_p50", "JCT p50", "{:.1f}", True),
    Column("jct_p95", "JCT p95", "{:.1f}", True),
    Column("jct_p99", "JCT p99", "{:.1f}", True, 0),
    Column("engine_mean", "engine mean s", "{:.1f}", True, 0),
    Column("engine_p95", "engine p95", "{:.1f}", True),
    Column("engine_p99", "engine p99", "{:.1f}", True, 110),
    Column("queue_mean", "queue mean s", "{:.2f}", True),
    Column("queue_p95", "queue p95", "{:.2f}", True),
    Column("slowdown_mean", "slowdown mean", "{:.2f}", False, 0),
    Column("slowdown_max", "slowdown max", "{:.1f}", False, 90),
    Column("jain", "Jain index", "{:.2f}", False, 120),
    Column("throughput", "programs/s", "{:.3g}", True),
    Column("recomputed_tokens", "recomputed", "{:,.0f}", True),
    Column("return_hit_rate", "return hits", "{:.0%}", False, 90),
    Column("emulated_s", "emulated s", "{:.0f}", False),
    Column("wall_s", "wall s", "{:.0f}", False),
)
LABEL, CELL = 16, 15  # width of the labels, and of most figures with their ratio


def save(results: Sequence[Result], folder: Path, about: Mapping[str, Any] | None = None) -> Path:
    """Write `summary.json` and `summary.csv` (a flat row per run), pictures and `index.html` into `folder`.

    `about` is what a reader should know of the whole: command, commit, machine. Returns the page, which needs no other
    file. Raises ConfigError, after JSON and CSV, where what draws is not installed.
    """
    rows = [{key: _flat(result.get(key)) for key in KEYS} for result in results]
    (folder / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, KEYS)
        writer.writeheader()
        writer.writerows(rows)
    if missing := [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]:
        raise ConfigError(
            f"the report's page needs {' and '.join(missing)}; type: pip install 'astraea-sglang[demo]', then the same "
            f"command again; the runs and {folder / 'summary.json'} are kept"
        )
    look = plots.styles(result["policy"] for result in results)
    sections = [*_sweeps(results, look, folder), *_sections(results, look, folder)]
    target = folder / "index.html"
    target.write_text(page.render(sections, rows, about or {}), "utf-8")
    return target


def table(results: Sequence[Result], width: int = 100) -> Table:
    """The runs of one scenario for a terminal `width` wide; in brackets ratios to fcfs, below 95% intervals of those.

    Seeds are pooled. A column per policy as long as they fit, else a row per policy with the figures that matter most.
    """
    lines = compare(results)
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    return _upright(lines, shown) if LABEL + CELL * len(lines) <= width else _lying(lines, shown, width)


def title(result: Result) -> str:
    """What was run? One line, for above the table and the picture."""
    arrivals = result.get("arrivals") or "poisson"
    process, _, rate = arrivals.partition(":")
    unit = "its speed" if str(result["workload"]).startswith("trace:") else "the knee of fcfs"
    at = f"{result['load']:g} x {unit}"
    if process == "closed":
        at = f"{rate} programs at a time"
    elif arrivals != "poisson":
        at += f" ({arrivals} arrivals)"
    mixed = ", mixed chunks" if result.get("mixed_chunk") else ""
    overlap = ", overlapped scheduling" if result.get("overlap") else ""
    return f"{result['workload']} at {at}, {result['programs']} programs a run, {result['device']}{mixed}{overlap}"


def cell(line: Line, column: Column) -> str:
    """How does a figure print? With its ratio in brackets if the policy is compared with another; - if unknown."""
    value = line.figures[column.key]
    if math.isnan(value):
        return "-"
    compared = column.compared and line.policy != BASE and column.key in line.ratios
    return column.form.format(value) + (f" ({line.ratios[column.key]:.2f})" if compared else "")


def interval(line: Line, key: str) -> str:
    """How does the interval of a ratio print? Empty where there is none: no fcfs, one seed, or fcfs itself."""
    found = line.intervals.get(key)
    return "" if found is None or line.policy == BASE or math.isnan(found.low) else f"{found.low:.2f}-{found.high:.2f}"


def told(lines: Sequence[Line]) -> list[Column]:
    """Which COLUMNS does at least one policy have?"""
    return [column for column in COLUMNS if any(not math.isnan(line.figures[column.key]) for line in lines)]


def folded(label: str, width: int) -> str:
    """A policy's label in lines of at most `width` characters where its punctuation allows it."""
    lines = [""]
    for part in re.findall(r"[^:,]+[:,]?|[:,]", label):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _upright(lines: Sequence[Line], shown: Table) -> Table:
    shown.add_column("", no_wrap=True)
    for line in lines:
        shown.add_column(_head(line, lines, CELL), justify="right", overflow="fold")
    for column in told(lines):
        shown.add_row(column.label, *(cell(line, column) for line in lines))
        if any(intervals := [interval(line, column.key) for line in lines]):
            shown.add_row("  95% interval", *intervals, style="dim")
    return shown


def _lying(lines: Sequence[Line], shown: Table, width: int) -> Table:
    columns = [column for column in told(lines) if column.width <= width]
    shown.add_column("", overflow="fold")
    for column in columns:
        shown.add_column(column.label.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for line in lines:
        shown.add_row(_head(line, lines, 22), *_cells(line, columns))
    return shown


def _head(line: Line, lines: Sequence[Line], width: int) -> str:
    seeds = {seed for other in lines for seed in other.seeds}
    missing = "" if len(line.seeds) == len(seeds) else f"\n{len(line.seeds)} of {len(seeds)} seeds"
    return folded(line.policy, width) + missing


def _sections(results: Sequence[Result], look: Mapping[str, plots.Style], folder: Path) -> list[page.Section]:
    sections: dict[str, page.Section] = {}
    for runs in scenarios(results):
        slug = _slug(sections, runs[0]["workload"], f"{runs[0]['load']:g}", runs[0].get("arrivals") or "poisson")
        lines, heading = compare(runs), title(runs[0])
        columns = told(lines)
        sections[slug] = page.Section(
            heading,
            _finding(lines),
            ["policy", "seeds", *(column.label for column in columns)],
            [[line.policy, ", ".join(map(str, line.seeds)), *_cells(line, columns)] for line in lines],
            _pictures(runs, look, heading, slug, folder),
        )
    return list(sections.values())


def _sweeps(results: Sequence[Result], look: Mapping[str, plots.Style], folder: Path) -> list[page.Section]:
    sections: dict[str, page.Section] = {}
    for sweep in sweeps(results):
        runs = [run for found in sweep.values() for run in found]
        heading = f"{runs[0]['workload']} by load, {runs[0]['programs']} programs a run, {runs[0]['device']}"
        slug = _slug(sections, "load", runs[0]["workload"], runs[0].get("arrivals") or "poisson")
        target = folder / f"{slug}.png"
        plots.loads(sweep, look, heading, target)
        carried = capacities(sweep)
        rows = [[policy, str(load), str(times) if times else "-"] for policy, (load, times) in carried.items()]
        head = ["policy", f"load carried at slowdown {LIMIT:g}", f"times that of {BASE}"]
        caption = (
            "Means over the programs of all seeds; a band spans the seeds, from the lowest to the highest (of many "
            f"policies, for {BASE} and {plots.OURS} alone). A load counts as carried while the mean engine slowdown is "
            f"{LIMIT:g} or less."
        )
        sections[slug] = page.Section(heading, "", head, rows, [page.Picture(target, heading, caption)])
    return list(sections.values())


def _pictures(
    runs: Sequence[Result], look: Mapping[str, plots.Style], heading: str, slug: str, folder: Path
) -> list[page.Picture]:
    pictures = []

    def add(kind: str, draw: Callable[[str, Path], None], what: str, caption: str) -> None:
        target = folder / f"{kind}-{slug}.png"
        draw(f"{what}: {heading}", target)
        pictures.append(page.Picture(target, f"{what}, {heading}", caption))

    if full := [run for run in runs if run.get("per_program")]:
        caption = "The further left a line, the sooner programs were done. All seeds together."
        add("jct", lambda text, to: plots.distributions(full, look, text, to), "Distributions", caption)
    if chosen := _of_one_seed(runs, "memory"):
        caption = (
            f"Seed {chosen[0]['seed']}. Running: held by requests in the batch; preserved: of programs whose tool "
            "runs, which only astraea knows; cached: kept in the radix tree until room is needed."
        )
        add("memory", lambda text, to: plots.memory(chosen, text, to), "The KV pool over time", caption)
    if lanes := _of_one_seed(runs, "segments"):
        named = [run for run in lanes if run["policy"] in (BASE, plots.OURS)]
        chosen = named if len(named) == 2 else lanes[:2]
        caption = f"Seed {chosen[0]['seed']}, the {plots.PROGRAMS} programs in the middle of those that arrived."
        add("lanes", lambda text, to: plots.timeline(chosen, text, to), "Programs, one lane each", caption)
    return pictures


def _of_one_seed(runs: Sequence[Result], key: str) -> list[Result]:
    """The runs that have `key`, of the seed for which most policies have it; without BOUND, which shares no engine."""
    having = [run for run in runs if run.get(key) and run["policy"] != BOUND]
    seeds = Counter(run["seed"] for run in having)
    best = min(seeds, key=lambda seed: (-seeds[seed], seed), default=None)
    return [run for run in having if run["seed"] == best]


def _finding(lines: Sequence[Line]) -> str:
    """One sentence: who was best?"""
    able = [line for line in lines if line.policy != BOUND and not math.isnan(line.figures["jct_mean"])]
    if not able:
        return ""
    best = min(able, key=lambda line: line.figures["jct_mean"])
    text = f"Shortest mean JCT: {best.policy}, {best.figures['jct_mean']:.1f} s"
    if best.policy != BASE and "jct_mean" in best.ratios:
        sure = f"95% interval {spread}" if (spread := interval(best, "jct_mean")) else "one seed, so no interval"
        text += f", {best.ratios['jct_mean']:.2f} times that of {BASE} ({sure})"
    return f"{text}."


def _cells(line: Line, columns: Sequence[Column]) -> list[str]:
    return ["\n".join(filter(None, (cell(line, column), interval(line, column.key)))) for column in columns]


def _slug(taken: Collection[str], *parts: str) -> str:
    name = "-".join(re.sub(r"[^\w.=]+", "-", part) for part in parts if part != "poisson")
    while name in taken:  # they differ in what no file name tells
        name += "+"
    return name


def _flat(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
