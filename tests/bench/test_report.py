import csv
import json
from typing import Any

from rich.console import Console

from astraea_sglang.bench.report import KEYS, save, table, title

REQUIRED = {
    "workload", "load", "policy", "seed", "programs", "jct_mean", "jct_p50", "jct_p95", "jct_p99", "engine_mean",
    "engine_p95", "slowdown_mean", "slowdown_max", "jain", "recomputed_tokens", "return_hit_rate", "emulated_s",
    "wall_s",
}  # fmt: skip


def result(policy: str, seed: int = 1, **figures: Any) -> dict[str, Any]:
    row = dict.fromkeys(KEYS, 1.0) | {
        "workload": "coding",
        "load": 1.3,
        "programs": 2,
        "device": "d",
        "mixed_chunk": False,
    }
    programs = [{"id": "p0", "jct": 3.0, "engine": 1.0}, {"id": "p1", "jct": 9.0, "engine": 2.0}]
    return row | {"policy": policy, "seed": seed, "per_program": programs} | figures


def shown(*results: dict[str, Any]) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table(results))
    return capture.get()


def row(text: str, label: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(label)]
    return line.removeprefix(label).split()


def test_a_column_pools_the_seeds_of_a_policy_and_compares_with_fcfs():
    text = shown(
        result("lpm", 1, jct_mean=30.0), result("fcfs", 1, jct_mean=30.0),
        result("lpm", 2, jct_mean=60.0), result("fcfs", 2, jct_mean=90.0),
    )  # fmt: skip
    assert row(text, "JCT mean s") == ["45.0", "(0.75)", "60.0", "(1.00)"]


def test_without_fcfs_there_is_nothing_to_compare_with():
    assert row(shown(result("lpm", jct_mean=30.0)), "JCT mean s") == ["30.0"]


def test_a_column_says_which_seeds_it_lacks():
    assert "1 of 2 seeds" in shown(result("fcfs", 1), result("fcfs", 2), result("lpm", 2))


def test_a_report_is_a_list_with_one_flat_object_a_run(tmp_path):
    save([result("fcfs"), result("lpm", jct_mean=2.5)], tmp_path)
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [row["policy"] for row in rows] == ["fcfs", "lpm"]
    assert set(rows[0]) >= REQUIRED and "per_program" not in rows[0]
    with (tmp_path / "summary.csv").open() as file:
        assert [float(row["jct_mean"]) for row in csv.DictReader(file)] == [1.0, 2.5]
    assert (tmp_path / "jct.png").read_bytes().startswith(b"\x89PNG")


def test_the_title_says_what_was_run():
    assert title(result("fcfs")) == "coding at 1.3 x the knee of fcfs, 2 programs a run, d"
    assert title(result("fcfs", mixed_chunk=True)).endswith(", mixed chunks")
