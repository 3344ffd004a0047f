import json
import math

import pytest
from rich.console import Console

from astraea_sglang.fleet.agents import ProgramRun, SegmentRun, ToolRun
from astraea_sglang.fleet.report import as_json, figures, markdown, percentile, table
from astraea_sglang.fleet.runs import Run, machine

SETTINGS = {
    "machine": machine(), "sglang": "0.5.23", "model": "M", "kv_tokens": 3072, "max_running_requests": 8, "seed": 7,
    "gap_s": 2.0, "factor": 0.1,
}  # fmt: skip


def segment(sent: float, queue_s: float, finished: float, prompt: int = 100, cached: int = 40) -> SegmentRun:
    return SegmentRun(sent, queue_s, sent + queue_s, finished, prompt, cached, recomputed_tokens=10, output_tokens=7)


def program(arrival: float, finished: float, error: str | None = None) -> ProgramRun:
    """Two segments that queue for 1 s and 2 s, tools of 3 s and 1 s."""
    segments = [segment(arrival, 1.0, arrival + 2), segment(arrival + 5, 2.0, finished - 1)]
    tools = [ToolRun("cd", arrival + 2, arrival + 5, 3), ToolRun("ls", finished - 1, finished, 4)]
    return ProgramRun(f"p{arrival}", "qa", arrival, finished, error, segments, tools)


def run(policy: str, *programs: ProgramRun, **engine: float) -> Run:
    return Run(policy, SETTINGS, engine, list(programs))


def line(text: str, label: str) -> list[str]:
    (found,) = [row for row in text.splitlines() if row.startswith(f"| {label} |")]
    return [cell.strip() for cell in found.split("|")[2:-1]]


def test_the_figures_of_a_run_done_by_hand():
    seen = figures(run("fcfs", program(0, 10), program(4, 24), evicted_tokens_total=9))
    assert seen["jct_mean"] == 15
    assert seen["jct_p50"] == 10
    assert seen["jct_p95"] == seen["jct_p99"] == 20
    assert seen["tool_mean"] == 4
    assert seen["engine_mean"] == 11
    assert seen["queue_mean"] == 3
    assert seen["makespan"] == 24
    assert (seen["prompt_tokens"], seen["cached_tokens"], seen["uncached_tokens"]) == (400, 160, 240)
    assert (seen["recomputed_tokens"], seen["output_tokens"], seen["evicted_tokens"]) == (40, 28, 9)
    assert seen["finished"] == 2


def test_a_lost_program_counts_as_lost_and_not_as_fast():
    seen = figures(run("fcfs", program(0, 10), program(4, 6.5, error="gone")))
    assert seen["finished"] == 1
    assert seen["jct_mean"] == 10


@pytest.mark.parametrize(("p", "value"), [(0, 1), (50, 50), (95, 95), (99, 99), (100, 100)])
def test_percentiles_are_by_nearest_rank(p, value):
    assert percentile(range(100, 0, -1), p) == value


def test_the_ratio_is_of_each_later_policy_over_the_first():
    text = markdown([run("fcfs", program(0, 20)), run("lpm", program(0, 30)), run("astraea", program(0, 10))])
    assert line(text, "JCT, mean") == ["20.0 s", "30.0 s", "10.0 s", "1.50", "0.50"]
    assert line(text, "programs finished") == ["1", "1", "1", "1.00", "1.00"]


def test_a_figure_that_is_not_there_is_a_dash_in_text_and_null_in_json():
    runs = [run("fcfs"), run("astraea", program(0, 10))]
    assert line(markdown(runs), "JCT, mean") == ["-", "10.0 s", "-"]
    assert json.loads(as_json(runs))["figures"]["fcfs"]["jct_mean"] is None
    assert math.isnan(figures(runs[0])["jct_mean"])


def test_the_table_shows_a_worse_jct_in_red_and_a_better_one_in_green():
    def printed(first: float, second: float) -> str:
        console = Console(force_terminal=True, color_system="standard", width=100)
        with console.capture() as capture:
            console.print(table([run("fcfs", program(0, first)), run("astraea", program(0, second))]))
        return next(row for row in capture.get().splitlines() if "JCT, mean" in row)

    assert "\x1b[31m1.20" in printed(10, 12)
    assert "\x1b[32m0.80" in printed(10, 8)


def test_the_report_names_machine_and_conditions():
    text = markdown([run("fcfs", program(0, 10))])
    for said in (SETTINGS["machine"]["cpu"], "seed 7", "SGLang 0.5.23", "constrained to the reference call", "x 0.1"):
        assert said in text


def test_a_saved_run_holds_every_time_and_size(tmp_path):
    measured = run("fcfs", program(0, 10), evicted_tokens_total=9.0)
    measured.save(tmp_path / "run.json")
    saved = json.loads((tmp_path / "run.json").read_text())
    assert saved["programs"][0]["segments"][1]["queue_s"] == 2.0
    assert saved["programs"][0]["tools"][0] == {"name": "cd", "start": 2, "end": 5, "result_size": 3}
    assert saved["engine"] == {"evicted_tokens_total": 9.0}
    assert saved["settings"]["seed"] == 7
