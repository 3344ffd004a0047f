import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from astraea_sglang import serving, smollm2
from astraea_sglang.errors import ConfigError, ServerError
from astraea_sglang.fleet import demo


@pytest.fixture
def starts(stand_in, monkeypatch, model_directory):
    """What each server was started with; every server is the stand-in, arrivals and tools take no time."""
    seen = []

    @contextmanager
    def start(model, flags, log):
        seen.append((model, flags, log))
        yield SimpleNamespace(url=stand_in.url, log=log)

    monkeypatch.setattr(serving, "start", start)
    monkeypatch.setattr(smollm2, "build", lambda progress=None: model_directory)
    monkeypatch.setattr(demo, "GAP_S", 0.001)
    monkeypatch.setattr(demo, "TOOL_FACTOR", 0.0)
    return seen


def test_both_policies_get_the_same_requests_on_servers_that_differ_in_the_policy_only(starts, stand_in, tmp_path):
    assert demo.run(tmp_path, programs=2, seed=1) == 0
    (_, fcfs, fcfs_log), (_, astraea, astraea_log) = starts
    assert fcfs[:2] == ["--schedule-policy", "fcfs"]
    assert astraea[:2] == ["--schedule-policy", "astraea"]
    assert fcfs[2:] == astraea[2:]
    assert fcfs_log != astraea_log
    key = lambda body: (body["session_id"], len(body["input_ids"]))  # noqa: E731
    half = len(stand_in.bodies) // 2
    assert sorted(stand_in.bodies[:half], key=key) == sorted(stand_in.bodies[half:], key=key)


def test_a_demo_leaves_reports_runs_and_a_picture(starts, tmp_path, capsys):
    assert demo.run(tmp_path / "new" / "out", programs=2, seed=1) == 0
    left = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert left == {"report.json", "report.md", "timeline.png", "run-fcfs.json", "run-astraea.json"}
    report = json.loads((tmp_path / "new" / "out" / "report.json").read_text())
    assert report["figures"]["astraea"]["finished"] == 2
    assert report["settings"]["kv_tokens"] == 3072
    assert report["figures"]["fcfs"]["evicted_tokens"] == 0  # 7 before, 7 after
    assert "astraea / fcfs" in capsys.readouterr().out


def test_a_lost_program_is_named_and_makes_the_demo_fail(starts, stand_in, tmp_path, capsys):
    first = []

    def fail_one(body):
        first.append(body["session_id"])
        return 500 if body["session_id"] == first[0] else stand_in.obedient(body)

    stand_in.answer = fail_one
    assert demo.run(tmp_path, programs=2, seed=1, policy_list="fcfs") == 1
    assert f"lost under fcfs: {first[0]}: ServerError: /generate answered 500" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["figures"]["fcfs"]["finished"] == 1


def test_ctrl_c_keeps_the_run_that_had_ended(starts, monkeypatch, tmp_path, capsys):
    started = serving.start

    def interrupted_the_second_time(model, flags, log):
        if starts:
            raise KeyboardInterrupt
        return started(model, flags, log)

    monkeypatch.setattr(serving, "start", interrupted_the_second_time)
    assert demo.run(tmp_path, programs=2, seed=1) == 130
    assert "kept: " in capsys.readouterr().out
    assert (tmp_path / "run-fcfs.json").exists()
    assert not (tmp_path / "report.json").exists()


def test_a_server_that_does_not_answer_ends_the_demo_with_the_place_of_its_log(monkeypatch, starts, tmp_path):
    @contextmanager
    def gone(model, flags, log):
        yield SimpleNamespace(url="http://127.0.0.1:9", log=log)

    monkeypatch.setattr(serving, "start", gone)
    with pytest.raises(ServerError, match="see the server's log"):
        demo.run(tmp_path, programs=2, seed=1)


def test_an_output_folder_that_cannot_be_made_is_refused_first(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out FOLDER"):
        demo.run(tmp_path / "file" / "out", programs=2, seed=1)
