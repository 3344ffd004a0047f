"""Where did the time of every program go? One picture: a panel per policy, a lane per program, seconds to the right."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from astraea_sglang.fleet.agents import ProgramRun
from astraea_sglang.fleet.report import figures
from astraea_sglang.fleet.runs import Run

COLOURS = {"queue": "#d9d4cc", "prefill": "#c8553d", "decode": "#2f6690", "tool": "#e8c07d"}
INK, FAINT, LOST = "#333333", "#888888", "#b00020"
Span = tuple[str, float, float]


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write the picture to `path` (PNG, 1400 pixels wide): lanes in arrival order, each with its JCT or "lost"."""
    lanes = max(len(run.programs) for run in runs)
    figure = Figure(figsize=(14, 0.7 + len(runs) * (0.6 + 0.26 * lanes)), layout="constrained", dpi=100)
    panels = figure.subplots(len(runs), sharex=True, squeeze=False)[:, 0]
    for run, panel in zip(runs, panels, strict=True):
        _panel(panel, run)
    panels[-1].set_xlabel("seconds since the first arrival", color=INK)
    panels[-1].set_xlim(0, 1.04 * max(program.finished for run in runs for program in run.programs))
    panels[0].legend(
        handles=[Patch(color=colour, label=kind) for kind, colour in COLOURS.items()],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.2,
        ncols=len(COLOURS),
        frameon=False,
        labelcolor=INK,
    )
    figure.savefig(path)


def spans(program: ProgramRun) -> Iterator[Span]:
    """What did the program do from when to when? (kind, start, end) in seconds, kinds as in COLOURS."""
    for segment in program.segments:
        admitted = min(segment.sent + segment.queue_s, segment.first_token)
        yield "queue", segment.sent, admitted
        yield "prefill", admitted, segment.first_token
        yield "decode", segment.first_token, segment.finished
    for tool in program.tools:
        yield "tool", tool.start, tool.end


def _panel(panel: Axes, run: Run) -> None:
    numbers = figures(run)
    mean = f"mean JCT {numbers['jct_mean']:.1f} s" if numbers["finished"] else "no program finished"
    panel.set_title(
        f"{run.policy}:  {mean},  makespan {numbers['makespan']:.1f} s",
        loc="left",
        color=INK,
        fontweight="bold",
        fontsize=12,
    )
    for lane, program in enumerate(run.programs):
        for kind, start, end in spans(program):
            panel.broken_barh([(start, end - start)], (lane - 0.36, 0.72), color=COLOURS[kind], linewidth=0)
        lost = program.error is not None
        jct, colour = ("lost", LOST) if lost else (f"{program.finished - program.arrival:.0f} s", FAINT)
        panel.annotate(jct, (program.finished, lane), (4, 0), textcoords="offset points", va="center", color=colour)
    panel.set_yticks(range(len(run.programs)), [program.tool_class for program in run.programs])
    panel.set_ylabel("programs, by class of tool", color=INK)
    panel.set_ylim(len(run.programs) - 0.4, -0.6)
    panel.grid(axis="x", color="#eeeeee")
    panel.set_axisbelow(True)
    panel.tick_params(length=0, colors=INK)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color("#cccccc")
