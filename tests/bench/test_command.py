import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from astraea_sglang.bench import runs
from astraea_sglang.bench.baselines import BASELINES
from astraea_sglang.bench.command import Asked, list_baselines, run, run_live
from astraea_sglang.bench.figures import Spec
from astraea_sglang.errors import ConfigError

GOOD = Asked("coding", "1.3", "fcfs,astraea:mlfq", "1,2")
SPEC = Spec("coding", 1.3, "fcfs", 1, 150, "h200-llama3.1-8b")


def test_every_policy_runs_with_every_seed_on_as_many_programs_as_the_workload_wants():
    asked = GOOD.specs()
    assert [(spec.policy, spec.seed) for spec in asked] == [
        ("fcfs", 1), ("astraea:mlfq", 1), ("fcfs", 2), ("astraea:mlfq", 2),
    ]  # fmt: skip
    assert {spec.programs for spec in asked} == {150}


def test_several_workloads_and_loads_are_one_command():
    asked = Asked("coding,infercept", "0.8,1.3", "fcfs").specs()
    assert [(spec.workload, spec.load, spec.programs) for spec in asked] == [
        ("coding", 0.8, 150), ("coding", 1.3, 150), ("infercept", 0.8, 1000), ("infercept", 1.3, 1000),
    ]  # fmt: skip


def test_in_a_closed_loop_no_load_is_asked_for():
    assert [spec.load for spec in Asked(load="0.8,1.3", policies="fcfs", arrivals="closed:8").specs()] == [1.0]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"workload": "chess"}, "--workload chess is unknown; choose one of: bfcl, coding"),
        ({"workload": "trace:nowhere.csv"}, "nowhere.csv"),
        ({"policies": "best"}, "--policies 'best' is unknown; choose from: fcfs"),
        ({"device": "tpu"}, "--device tpu is unknown; choose one of: h200"),
        ({"device": "nowhere.json"}, "--device nowhere.json cannot be read"),
        ({"seeds": "1,x"}, "--seeds '1,x': give whole numbers"),
        ({"seeds": ""}, "--seeds '': give whole numbers"),
        ({"load": "0"}, "--load 0: give multiples of the knee above 0"),
        ({"load": "nan"}, "--load nan"),
        ({"load": "1.3,fast"}, "--load fast"),
        ({"arrivals": "closed:0"}, "--arrivals 'closed:0': give poisson, gamma:CV"),
        ({"arrivals": "gamma:x"}, "--arrivals 'gamma:x'"),
    ],
)
def test_a_bad_argument_is_refused_before_anything_starts(tmp_path, change, complaint):
    with pytest.raises(ConfigError) as error:
        run(tmp_path / "out", replace(GOOD, **change), jobs=1)
    assert complaint in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="type --out FOLDER"):
        run(tmp_path / "out", GOOD, jobs=1)


def test_a_live_server_is_given_one_run_at_a_time(tmp_path):
    with pytest.raises(ConfigError, match="one workload, load and seed at a time; 2 were asked for"):
        run_live(tmp_path, GOOD, "http://127.0.0.1:9")


def test_every_baseline_is_listed_with_what_it_is_made_of(capsys):
    list_baselines()
    said = capsys.readouterr().out
    assert all(name in said for name in BASELINES)
    assert "2512.14142" in said and "order=plas" in said


def keep(folder: Path, text: str) -> None:
    target = runs.path(folder, SPEC)
    target.parent.mkdir()
    target.write_text(text)


@pytest.mark.parametrize(
    "text", ["", '{"workload": "cod', "[]", json.dumps(asdict(SPEC) | {"seed": 7, "per_program": []})]
)
def test_a_torn_or_foreign_file_is_no_finished_run(tmp_path, text):
    keep(tmp_path, text)
    assert runs.finished(tmp_path, SPEC) is None


def test_a_finished_run_is_found_again(tmp_path):
    keep(tmp_path, json.dumps(asdict(SPEC) | {"per_program": [{"id": "p"}]}))
    assert runs.finished(tmp_path, SPEC) == asdict(SPEC) | {"per_program": [{"id": "p"}]}
