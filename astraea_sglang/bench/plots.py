"""Pictures of runs, as PNG: distributions, load curves, memory over time, lanes of programs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from astraea_sglang.bench.stats import BASE, BOUND, LIMIT, Result, by_policy, pooled

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS = "astraea"
# Okabe and Ito's colours, which colour-blind people can tell apart, and dashes for print. Five and four: no two of
# twenty policies share both.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
DASHES: tuple[Any, ...] = ((0, (6, 2)), (0, (2, 1.4)), (0, (7, 2, 1.5, 2)), (0, (3, 1.5, 1, 1.5, 1, 1.5)))
MARKS = ("s", "^", "D", "v")
MEMORY = (
    ("running", "#0072b2", ""),
    ("preserved", "#e69f00", "////"),
    ("cached", "#a6d8f5", ""),
    ("free", "white", ""),
)
LANES = (("queued", "#e69f00", 0.8), ("running", "#0072b2", 0.8), ("in a tool", "#999999", 0.16))  # the last: height
PROGRAMS, PANELS, BINS = 40, 8, 400  # most lanes, most panels, and points in time of a picture
INK, FAINT = "#333333", "#dddddd"


class Style(NamedTuple):
    """How is a policy drawn, in every picture?"""

    color: str
    linestyle: Any
    linewidth: float
    marker: str


def styles(policies: Iterable[str]) -> dict[str, Style]:
    """Which style has each policy? BASE black, OURS vermilion, both solid and thick; BOUND grey; no two are alike."""
    fixed = {
        BASE: Style("#000000", "-", 2.4, "o"),
        OURS: Style("#d55e00", "-", 3.0, "o"),
        BOUND: Style("#999999", (0, (1, 1)), 1.6, ""),
    }
    chosen: dict[str, Style] = {}
    for policy in dict.fromkeys(policies):
        n = sum(other not in fixed for other in chosen)
        rest = Style(COLOURS[n % len(COLOURS)], DASHES[n % len(DASHES)], 1.7, MARKS[n % len(MARKS)])
        chosen[policy] = fixed.get(policy, rest)
    return chosen


def distributions(results: Sequence[Result], look: Mapping[str, Style], heading: str, target: Path) -> None:
    """Draw how JCT and engine time are spread under each policy: cumulative shares of the programs of all seeds."""
    figure = _figure(12, 5.2, heading)
    panels = figure.subplots(1, 2, sharey=True)
    panes = (("jct", "JCT, seconds (log scale)"), ("engine", "engine time = JCT - tools, seconds (log scale)"))
    for panel, (key, label) in zip(panels, panes, strict=True):
        for policy, runs in by_policy(results).items():
            values = sorted(row[key] for run in runs for row in run.get("per_program") or ())
            shares = [(n + 1) / len(values) for n in range(len(values))]
            panel.step(values, shares, where="post", label=policy, **_line(look[policy]))
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
        panel.set_xlabel(label)
        panel.set_ylim(0, 1.01)
        panel.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        _plain(panel)
    panels[0].set_ylabel("programs done within")
    _legend(figure, panels[0].get_lines())
    figure.savefig(target)


def loads(sweep: Mapping[float, Sequence[Result]], look: Mapping[str, Style], heading: str, target: Path) -> None:
    """Draw mean JCT and mean engine slowdown against load.

    A band spans the seeds, from the lowest to the highest; among more than three policies only BASE and OURS have one.
    """
    figure = _figure(12, 5.2, heading)
    panels = figure.subplots(1, 2)
    policies = by_policy(result for runs in sweep.values() for result in runs)
    few = len(policies) <= 3  # bands of more are mud
    panes = (("jct_mean", "mean JCT, seconds"), ("slowdown_mean", "mean engine slowdown, times alone (log scale)"))
    for panel, (key, label) in zip(panels, panes, strict=True):
        for policy in policies:
            runs = {load: found for load, results in sweep.items() if (found := by_policy(results).get(policy))}
            style = look[policy]
            middle = [pooled(found)[key] for found in runs.values()]
            panel.plot(list(runs), middle, label=policy, marker=style.marker, markersize=5, **_line(style))
            seeds = [[pooled([run])[key] for run in found] for found in runs.values()]
            low, high = [min(values) for values in seeds], [max(values) for values in seeds]
            if few or policy in (BASE, OURS):
                panel.fill_between(list(runs), low, high, color=style.color, alpha=0.15, linewidth=0)
        panel.set_xlabel("load, multiples of the knee of fcfs")
        panel.set_ylabel(label)
        panel.set_xticks(list(sweep), [f"{load:g}" for load in sweep])
        panel.minorticks_off()
        _plain(panel)
    panels[0].set_ylim(bottom=0)
    panels[1].set_yscale("log")
    _log_ticks(panels[1])
    panels[1].axhline(LIMIT, color=INK, linewidth=0.8)
    panels[1].annotate("limit", (1.01, LIMIT), xycoords=("axes fraction", "data"), va="center", color=INK)
    _legend(figure, panels[0].get_lines())
    figure.savefig(target)


def memory(runs: Sequence[Result], heading: str, target: Path) -> None:
    """Draw what the KV pool held over time, a panel per run, at most PANELS: shares of the pool, by kind."""
    from matplotlib.patches import Patch

    runs = runs[:PANELS]
    lines = -(-len(runs) // 2)
    figure = _figure(12, 1.5 + 2.3 * lines, heading)
    panels = figure.subplots(lines, min(2, len(runs)), sharex=True, sharey=True, squeeze=False).ravel()
    for panel, run in zip(panels, runs, strict=False):
        seconds, shares = _binned(run["memory"])
        colours, hatches = [colour for _, colour, _ in MEMORY], [hatch for *_, hatch in MEMORY]
        areas = panel.stackplot(seconds, shares, colors=colours, labels=[kind for kind, *_ in MEMORY])
        for area, hatch in zip(areas, hatches, strict=True):
            area.set(hatch=hatch, edgecolor="white" if hatch else "none", linewidth=0)
        panel.set_title(run["policy"], loc="left", fontsize=10, fontweight="bold", color=INK)
        panel.set_ylim(0, 1)
        panel.set_xlim(0, max(other["memory"][-1][0] for other in runs) or 1.0)
        panel.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        _plain(panel)
        panel.spines[["top", "right"]].set(visible=True, color=FAINT)
    for panel in panels[len(runs) :]:
        panel.set_visible(False)
    for panel in panels[max(0, len(runs) - 2) : len(runs)]:
        panel.set_xlabel("seconds")
        panel.tick_params(labelbottom=True)
    figure.supylabel("share of the KV pool", fontsize=10)
    _legend(
        figure, [Patch(facecolor=colour, label=kind, hatch=hatch, edgecolor=FAINT) for kind, colour, hatch in MEMORY]
    )
    figure.savefig(target)


def timeline(runs: Sequence[Result], heading: str, target: Path) -> None:
    """Draw a lane per program, a panel per run: when it waited, ran and was in a tool.

    Shown are the PROGRAMS in the middle of those that arrived, the same under every policy.
    """
    from matplotlib.patches import Patch

    first = runs[0]["segments"]
    order = sorted(filter(first.get, first), key=lambda id: (first[id][0][0], id))
    skipped = max(0, len(order) - PROGRAMS) // 2
    ids = order[skipped : skipped + PROGRAMS]
    figure = _figure(12, 1.2 + len(runs) * (0.7 + 0.1 * len(ids)), heading)
    panels = figure.subplots(len(runs), sharex=True, squeeze=False)[:, 0]
    for panel, run in zip(panels, runs, strict=True):
        there = [(lane, id) for lane, id in enumerate(ids) if run["segments"].get(id)]
        for kind, colour, height in LANES:
            for lane, id in there:
                spans = [(begun, ended - begun) for what, begun, ended in _spans(run["segments"][id]) if what == kind]
                panel.broken_barh(spans, (lane - height / 2, height), color=colour, linewidth=0)
        panel.set_title(run["policy"], loc="left", fontsize=10, fontweight="bold", color=INK)
        panel.set_ylim(len(ids) - 0.3, -0.7)
        panel.set_yticks([])
        panel.set_ylabel(f"{len(ids)} programs\nin order of arrival")
        _plain(panel)
    ended = [spans[id][-1][2] for spans in (run["segments"] for run in runs) for id in ids if spans.get(id)]
    panels[-1].set_xlim(first[ids[0]][0][0], max(ended))
    panels[-1].set_xlabel("seconds since the run began")
    _legend(figure, [Patch(color=colour, label=kind) for kind, colour, _ in LANES])
    figure.savefig(target)


def _spans(segments: Sequence[Sequence[float]]) -> Iterable[tuple[str, float, float]]:
    for n, (arrived, started, finished) in enumerate(segments):
        yield "queued", arrived, started
        yield "running", started, finished
        if n + 1 < len(segments):
            yield "in a tool", finished, segments[n + 1][0]


def _binned(rows: Sequence[Sequence[float]]) -> tuple[Any, Any]:
    """Middles of BINS equal stretches of time, and each kind's mean share of the pool in them; a row holds till the
    next."""
    import numpy as np

    table = np.asarray(rows, dtype=float)
    seconds, tokens = table[:, 0], table[:, 1:]
    if len(table) < 2 or seconds[0] == seconds[-1]:
        return seconds, (tokens / tokens.sum(1, keepdims=True)).T
    edges = np.linspace(seconds[0], seconds[-1], BINS + 1)
    held = np.vstack([np.zeros(tokens.shape[1]), np.cumsum(tokens[:-1] * np.diff(seconds)[:, None], axis=0)])
    means = np.array([np.diff(np.interp(edges, seconds, kind)) for kind in held.T])
    return (edges[1:] + edges[:-1]) / 2, means / means.sum(0)


def _figure(width: float, height: float, heading: str) -> "Figure":
    from matplotlib.figure import Figure  # a second to import: only here

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    figure.suptitle(heading, x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def _line(style: Style) -> dict[str, Any]:
    return {"color": style.color, "linestyle": style.linestyle, "linewidth": style.linewidth}


def _plain(panel: "Axes") -> None:
    panel.grid(color=FAINT, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(colors=INK)


def _log_ticks(panel: "Axes") -> None:
    low, high = panel.get_ylim()
    ticks = [
        digit * 10**n for n in range(math.floor(math.log10(low)), math.ceil(math.log10(high))) for digit in (1, 2, 5)
    ]
    panel.set_yticks([tick for tick in ticks if low <= tick <= high], minor=False)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.yaxis.set_minor_formatter(lambda value, _: "")


def _legend(figure: "Figure", handles: "Sequence[Artist]") -> None:
    """Below the panels, in as many columns as the longest label allows: it hides nothing there."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, min(len(handles), 120 // (longest + 9)))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, labelcolor=INK, handlelength=4
    )
