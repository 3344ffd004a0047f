import csv
import json
import sys
from typing import Any

import pytest
from rich.console import Console

from astraea_sglang.bench import report
from astraea_sglang.bench.report import KEYS, folded, save, table, title
from astraea_sglang.errors import ConfigError

LONG = "astraea:order=mlfq,admission=none"
FLAT = (
    {key: 1.0 for key in KEYS}
    | {"workload": "coding", "load": 1.3, "programs": 2, "device": "d", "sglang": "0", "arrivals": "poisson"}
    | {"mixed_chunk": False, "overlap": False, "finish_sha256": "ab"}
)


def result(policy: str, seed: int = 1, jct: tuple[float, ...] = (13.0, 19.0), **figures: Any) -> dict[str, Any]:
    rows = [
        {"id": f"p{n}", "class": "c", "arrived": n, "jct": j, "engine": j - 10, "slowdown": j}
        for n, j in enumerate(jct)
    ]
    return FLAT | {"policy": policy, "seed": seed, "per_program": rows} | figures


def lone(policy: str, **figures: Any) -> dict[str, Any]:
    """What an older or a live run may have: no programs, no memory, few figures."""
    return {key: FLAT[key] for key in ("workload", "load", "programs", "device")} | {
        "policy": policy,
        "seed": 1,
        "jct_mean": 30.0,
        **figures,
    }


def shown(*results: dict[str, Any], width: int = 120) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table(results, width))
    return capture.get()


def row(text: str, label: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(label)]
    return line.removeprefix(label).split()


def test_a_column_pools_the_seeds_of_a_policy_and_compares_with_fcfs():
    runs = [result("lpm", s, (j,)) for s, j in ((1, 30.0), (2, 60.0))] + [result("fcfs", s, (60.0,)) for s in (1, 2)]
    text = shown(*runs)
    assert row(text, "JCT mean s") == ["45.0", "(0.75)", "60.0"]
    assert row(text, "JCT p99") == ["60.0", "(1.00)", "60.0"]
    assert text.count("95% interval") == 2  # of mean JCT and mean engine time


def test_one_seed_has_no_interval():
    assert "95% interval" not in shown(result("fcfs"), result("lpm"))


def test_without_fcfs_there_is_nothing_to_compare_with():
    assert row(shown(result("lpm", jct=(30.0,))), "JCT mean s") == ["30.0"]


def test_a_column_says_which_seeds_it_lacks():
    assert "1 of 2 seeds" in shown(result("fcfs", 1), result("fcfs", 2), result("lpm", 2))


def test_what_no_policy_tells_is_left_out_and_what_one_does_not_is_a_dash():
    text = shown(lone("fcfs"), lone("lpm", queue_mean=2.0))
    assert row(text, "queue mean s") == ["-", "2.00"]
    assert "Jain" not in text


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("policies", [1, 4, 8, 14])
def test_tables_fit_and_break_no_figure_and_no_label_within_a_word(width, policies):
    names = ["fcfs", LONG, "astraea", "continuum:host=4", *(f"p{n}" for n in range(10))][:policies]
    runs = [result(name, seed, (1300.0 + seed, 1900.0)) for name in names for seed in (1, 2, 3)]
    text = shown(*runs, width=width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert "1601.0" in text and "1900.0" in text
    for name in names:
        assert all(part in text for part in folded(name, 15).splitlines())
    assert text.count("1.00-1.00") == 2 * (policies - 1)


def test_many_policies_become_rows():
    text = shown(*(result(name) for name in "abcdefgh"), result("fcfs"))
    assert [line.split()[0] for line in text.splitlines()[3:]] == [*"abcdefgh", "fcfs"]


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("fcfs", ["fcfs"]),
        (LONG, ["astraea:", "order=mlfq,", "admission=none"]),
        ("astraea:host=4", ["astraea:host=4"]),
        ("averylongnamewithoutanything", ["averylongnamewithoutanything"]),
        ("a,:,b", ["a,:,b"]),
    ],
)
def test_labels_fold_after_colons_and_commas(label, lines):
    assert folded(label, 16).splitlines() == lines


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ({}, "coding at 1.3 x the knee of fcfs, 2 programs a run, d"),
        ({"mixed_chunk": True}, "coding at 1.3 x the knee of fcfs, 2 programs a run, d, mixed chunks"),
        ({"arrivals": "gamma:3"}, "coding at 1.3 x the knee of fcfs (gamma:3 arrivals), 2 programs a run, d"),
        (
            {"arrivals": "closed:24", "overlap": True},
            "coding at 24 programs at a time, 2 programs a run, d, overlapped scheduling",
        ),
    ],
)
def test_the_title_says_what_was_run(figures, text):
    assert title(result("fcfs", **figures)) == text


def test_the_title_of_an_older_run_says_what_is_known():
    assert title(lone("fcfs")) == "coding at 1.3 x the knee of fcfs, 2 programs a run, d"


def test_a_report_has_one_flat_object_a_run(tmp_path):
    save([result("fcfs"), lone("lpm", jct_p50=float("nan"), table={"a": 1})], tmp_path)
    text = (tmp_path / "summary.json").read_text()
    rows = json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON
    assert [row["policy"] for row in rows] == ["fcfs", "lpm"]
    assert [list(row) for row in rows] == [list(KEYS)] * 2
    assert (rows[1]["jct_p50"], rows[1]["queue_mean"]) == (None, None)
    with (tmp_path / "summary.csv").open() as file:
        assert [row["jct_mean"] for row in csv.DictReader(file)] == ["1.0", "30.0"]


def test_every_scenario_and_every_sweep_has_a_section_with_pictures_of_its_own(tmp_path):
    segments = {"p0": [[0.0, 1.0, 2.0], [5.0, 5.0, 6.0]], "p1": [[1.0, 1.5, 3.0]]}
    memory = [[0.0, 0, 0, 0, 9], [4.0, 3, 1, 2, 3], [6.0, 0, 0, 0, 9]]
    runs = [
        result(policy, load=load, segments=segments, memory=memory)
        for policy in ("fcfs", "astraea", "unloaded")
        for load in (1.0, 1.3)
    ]
    runs.append(result("fcfs", device="e"))  # another scenario that no file name tells
    page = save(runs, tmp_path).read_text()
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {
        "load-coding.png", "jct-coding-1.3+.png",
        *(f"{kind}-{slug}.png" for kind in ("jct", "memory", "lanes") for slug in ("coding-1", "coding-1.3")),
    }  # fmt: skip
    assert page.count("<img") == len(pictures) == page.count("data:image/png;base64,")
    assert page.count("<h2") == 4 + 2
    assert "Shortest mean JCT: fcfs, 16.0 s." in page


def test_sweeps_of_two_workloads_are_drawn_to_files_of_their_own(tmp_path):
    save([lone("fcfs", workload=name, load=load, slowdown_mean=2.0) for name in "ab" for load in (1.0, 1.3)], tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"load-a.png", "load-b.png"}


def test_a_report_of_old_runs_alone_is_a_page_without_pictures(tmp_path):
    page = save([lone("fcfs"), lone("lpm")], tmp_path)
    assert "<img" not in page.read_text() and not list(tmp_path.glob("*.png"))


def test_equal_results_give_equal_files(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        save([result("fcfs"), result("astraea")], folder, {"command": "astraea bench"})
    assert [path.read_bytes() for path in sorted(one.iterdir())] == [
        path.read_bytes() for path in sorted(two.iterdir())
    ]


def test_where_nothing_can_draw_the_figures_are_kept_and_the_fix_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == "matplotlib" else sys)
    with pytest.raises(ConfigError, match=r"needs matplotlib; type: pip install 'astraea-sglang\[demo\]'"):
        save([result("fcfs")], tmp_path)
    assert (tmp_path / "summary.json").exists() and not (tmp_path / "index.html").exists()


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ([result("fcfs", s, (20.0,)) for s in (1, 2)] + [result("a", s, (10.0,)) for s in (1, 2)],
         "Shortest mean JCT: a, 10.0 s, 0.50 times that of fcfs (95% interval 0.50-0.50)."),
        ([result("fcfs", 1, (20.0,)), result("a", 1, (10.0,))],
         "Shortest mean JCT: a, 10.0 s, 0.50 times that of fcfs (one seed, so no interval)."),
        ([result("unloaded", 1, (1.0,)), result("fcfs", 1, (20.0,))], "Shortest mean JCT: fcfs, 20.0 s."),
    ],
)  # fmt: skip
def test_the_finding_names_the_best_policy_that_a_server_can_run(runs, text, tmp_path):
    assert text in save(runs, tmp_path).read_text()
