"""SGLang's real scheduler on a virtual clock. Each replay has a process of its own; two are shared by these tests."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from astraea_sglang.bench import device, workloads
from astraea_sglang.bench.figures import Spec
from astraea_sglang.bench.plans import families
from astraea_sglang.bench.runs import finished, path, run_all

pytestmark = pytest.mark.server  # no server, but SGLang's scheduler in processes of its own: slow

H200 = "h200-llama3.1-8b"
ALONE = Spec("mixed", 0.0005, "fcfs", 2185, 6, H200, False)  # half an hour between programs, two of them coding
SESSIONS = "fcfs:session-radix=on"
CROWDED = Spec("infercept", 4.0, "astraea", 1, 100, H200, False)


def results(folder: Path, *specs: Spec) -> list[dict[str, Any]]:
    """What the replays left; each has checked its pool, its segments and our program table before."""
    for spec, good in run_all(specs, folder, 2, lambda spec, seconds, programs: None):
        assert good, path(folder, spec).with_suffix(".log").read_text()
    return [result for spec in specs if (result := finished(folder, spec))]


def unloaded(spec: Spec) -> list[float]:
    """Engine seconds in closed form; the first program of a class has to compute its system prompt itself."""
    plans = workloads.plan(spec.workload, load=spec.load, programs=spec.programs, seed=spec.seed)
    seen: set[str] = set()
    expected = []
    for program in plans:
        resident = program.shared_prefix if program.program_class in seen else 0
        expected.append(device.load(spec.device).alone([program], resident))
        seen.add(program.program_class)
    return expected


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return results(tmp_path_factory.mktemp("bench"), ALONE, CROWDED)


def test_programs_alone_on_the_engine_take_what_the_closed_form_says(replayed):
    alone, _ = replayed
    assert {program["class"] for program in alone["per_program"]} >= {"coding", "oneshot"}
    assert [program["engine"] for program in alone["per_program"]] == pytest.approx(unloaded(ALONE), rel=1e-9)
    assert alone["recomputed_tokens"] == 0 and alone["return_hit_rate"] == 1


def test_a_crowd_waits_and_loses_its_kv(replayed):
    _, crowded = replayed
    assert crowded["slowdown_mean"] > 1.2
    assert crowded["recomputed_tokens"] > 0 and crowded["return_hit_rate"] < 1


def test_our_table_saw_every_program_end_and_counted_no_fault(replayed):
    _, crowded = replayed
    assert crowded["table"] == {"final_programs": 100}


def test_the_same_seed_in_another_process_goes_the_same_way_to_the_last_bit(replayed, tmp_path):
    (again,) = results(tmp_path, CROWDED)
    assert again["finish_sha256"] == replayed[1]["finish_sha256"]
    assert again["passes"] == replayed[1]["passes"]


def test_astraea_beats_fcfs_past_the_knee_and_repeats_itself(tmp_path):
    fcfs, ours = (Spec("small", 1.3, policy, 1, 60, H200) for policy in ("fcfs", "astraea"))
    theirs, first = results(tmp_path / "a", fcfs, ours)
    (again,) = results(tmp_path / "b", ours)
    assert first["finish_sha256"] == again["finish_sha256"]
    assert first["jct_mean"] < theirs["jct_mean"] and first["engine_mean"] < 0.8 * theirs["engine_mean"]


def test_an_overlapped_scheduler_makes_as_many_tokens_as_planned_and_wastes_a_pass_at_most(tmp_path):
    (alone,) = results(tmp_path, replace(ALONE, overlap=True))
    for program, seconds in zip(alone["per_program"], unloaded(ALONE), strict=True):
        assert 1 - 1e-9 <= program["engine"] / seconds < 1.01


def test_a_host_pool_saves_recomputing_and_its_copies_take_the_link_s_time(tmp_path):
    constants = json.loads((device.FOLDER / f"{H200}.json").read_text())
    constants["constants"]["host_token_s"]["value"] *= 100
    (tmp_path / "slow.json").write_text(json.dumps(constants))
    without = Spec("infercept", 4.0, "fcfs", 1, 150, H200)
    fast = replace(without, policy="fcfs:host=4")
    cold, warm, slow = results(tmp_path, without, fast, replace(fast, device=str(tmp_path / "slow.json")))
    assert warm["recomputed_tokens"] < 0.1 * cold["recomputed_tokens"]
    assert warm["engine_mean"] < cold["engine_mean"] < slow["engine_mean"]
    assert cold["copied_tokens"] == [0, 0] and min(warm["copied_tokens"]) > 10_000


def test_sub_agents_run_beside_each_other_and_their_parent_waits_for_them(tmp_path):
    spec = Spec("forks", 0.001, "astraea", 1, 4, H200)
    (alone,) = results(tmp_path, spec)
    plans = workloads.plan("forks", load=0.001, programs=4, seed=1)
    bound = [device.load(H200).alone(family) for family in families(plans)]
    for program, seconds in zip(alone["per_program"], bound, strict=True):
        assert 1 - 1e-9 <= program["engine"] / seconds < 1.3  # siblings share passes, which the bound leaves out
    assert len(alone["segments"]) == len(plans)
    assert alone["table"] == {"final_programs": len(plans)}


def test_in_a_closed_loop_so_many_programs_are_alive(tmp_path):
    (closed,) = results(tmp_path, Spec("small", 1.0, "fcfs", 1, 40, H200, arrivals="closed:8"))
    spans = [(p["arrived"], p["arrived"] + p["jct"]) for p in closed["per_program"]]
    alive = [sum(begun <= now < ended for begun, ended in spans) for now, _ in spans]
    assert max(alive) == 8 and sorted(alive)[len(alive) // 2] == 8


@pytest.mark.parametrize(
    "policy", ["hrrn-corrected", "continuum", "infercept", "progress-ttl", "fcfs:session-radix=on"]
)
def test_every_baseline_finishes_what_it_is_given(tmp_path, policy):
    (done,) = results(tmp_path, Spec("small", 1.3, policy, 2, 40, H200))
    assert len(done["per_program"]) == 40 and done["slowdown_mean"] >= 1


def test_nobody_is_faster_than_alone(tmp_path):
    bound, crowded = results(tmp_path, *(Spec("small", 1.3, name, 1, 40, H200) for name in ("unloaded", "astraea")))
    assert bound["slowdown_mean"] == pytest.approx(1) and bound["recomputed_tokens"] == 0
    pairs = zip(bound["per_program"], crowded["per_program"], strict=True)
    assert all(one["engine"] <= other["engine"] * (1 + 1e-9) for one, other in pairs)


@pytest.mark.parametrize("policy", ["fcfs", "lpm", "hrrn", "astraea:mlfq"])
def test_every_policy_repeats_itself_under_thrash(tmp_path, policy):
    specs = Spec("infercept", 4.0, policy, 1, 150, H200, False)
    (first,), (second,) = results(tmp_path / "a", specs), results(tmp_path / "b", specs)
    assert first["finish_sha256"] == second["finish_sha256"]
    assert first["recomputed_tokens"] > 1000


def test_mixed_chunks_leave_a_program_alone_as_it_was_and_relieve_a_crowd(tmp_path):
    alone, apart, mixed = results(
        tmp_path,
        replace(ALONE, mixed_chunk=True),
        Spec("infercept", 4.0, "fcfs", 1, 150, H200, False),
        Spec("infercept", 4.0, "fcfs", 1, 150, H200, True),
    )
    assert [program["engine"] for program in alone["per_program"]] == pytest.approx(unloaded(ALONE), rel=1e-9)
    assert mixed["engine_mean"] < apart["engine_mean"]


def test_ctrl_c_keeps_finished_runs_and_the_same_command_goes_on_from_there(tmp_path):
    command = [
        *(sys.executable, "-m", "astraea_sglang.cli", "bench", "--workload", "infercept", "--load", "4", "--jobs", "1"),
        *("--programs", "30", "--policies", "fcfs,astraea:mlfq", "--seeds", "1,2", "--out", str(tmp_path)),
    ]
    # a shell ignores SIGINT for what it runs in the background, this test perhaps
    attend = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=attend) as lab:
        wait_until(lambda: len(kept(tmp_path)) >= 2)
        os.killpg(lab.pid, signal.SIGINT)
        said, _ = lab.communicate(timeout=60)
    assert lab.returncode == 130
    assert "of 4 runs are kept" in said
    first = {file: file.stat().st_mtime_ns for file in kept(tmp_path)}
    assert 2 <= len(first) < 4
    assert len(json.loads((tmp_path / "summary.json").read_text())) == len(first)
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout
    assert f"{len(first)} of 4 runs are in" in again.stdout
    assert len(json.loads((tmp_path / "summary.json").read_text())) == 4
    assert {file: file.stat().st_mtime_ns for file in first} == first


def test_a_run_that_fails_says_why_and_the_others_go_on(tmp_path):
    command = [
        *(sys.executable, "-m", "astraea_sglang.cli", "bench", "--workload", "infercept", "--programs", "3"),
        *("--policies", "fcfs,astraea", "--out", str(tmp_path)),
    ]
    broken = path(tmp_path, Spec("infercept", 1.3, "astraea", 1, 3, H200, False)).with_suffix(".part")
    broken.mkdir(parents=True)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "astraea seed 1 failed: IsADirectoryError" in done.stdout
    assert [row["policy"] for row in json.loads((tmp_path / "summary.json").read_text())] == ["fcfs"]


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "runs").glob("*.json"))


def wait_until(done: Callable[[], bool], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
