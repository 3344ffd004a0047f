import json
from dataclasses import asdict
from pathlib import Path

import pytest

from astraea_sglang.bench import runs
from astraea_sglang.bench.command import run, specs
from astraea_sglang.bench.figures import Spec
from astraea_sglang.errors import ConfigError

GOOD = {
    "workload": "coding", "load": 1.3, "policy_list": "fcfs,astraea:mlfq", "seed_list": "1,2",
    "device_name": "h200-llama3.1-8b", "programs": None, "mixed_chunk": False,
}  # fmt: skip
SPEC = Spec("coding", 1.3, "fcfs", 1, 150, "h200-llama3.1-8b", False)


def test_every_policy_runs_with_every_seed_on_as_many_programs_as_the_workload_wants():
    asked = specs(**GOOD)
    assert [(spec.policy, spec.seed) for spec in asked] == [
        ("fcfs", 1), ("astraea:mlfq", 1), ("fcfs", 2), ("astraea:mlfq", 2),
    ]  # fmt: skip
    assert {spec.programs for spec in asked} == {150}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"workload": "chess"}, "--workload chess is unknown; choose one of: coding"),
        ({"policy_list": "best"}, "--policies 'best' is unknown; choose from: fcfs"),
        ({"device_name": "tpu"}, "--device tpu is unknown; choose one of: h200"),
        ({"seed_list": "1,x"}, "--seeds '1,x': give whole numbers"),
        ({"seed_list": ""}, "--seeds '': give whole numbers"),
        ({"load": 0.0}, "--load 0: give a multiple of the knee above 0"),
        ({"load": float("nan")}, "--load nan"),
    ],
)
def test_a_bad_argument_is_refused_before_anything_starts(tmp_path, change, complaint):
    with pytest.raises(ConfigError) as error:
        run(tmp_path / "out", jobs=1, **(GOOD | change))
    assert complaint in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="type --out FOLDER"):
        run(tmp_path / "out", jobs=1, **GOOD)


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
