import argparse
import json
import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from sglang.srt.server_args import ServerArgs

from astraea_sglang.errors import ConfigError, SeamError
from astraea_sglang.patches import args
from astraea_sglang.predict import Predictor


@pytest.fixture(autouse=True)
def _as_engine(monkeypatch):
    for name in ("ASTRAEA_ORDER", "ASTRAEA_REAP_AFTER", "ASTRAEA_HISTORY"):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(args, "_from_command_line", False)


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return parser.parse_args(["--model-path", "m", *argv])


def asked(**differences) -> SimpleNamespace:
    plain = dict(
        schedule_policy="astraea",
        enable_priority_scheduling=False,
        dp_size=1,
        tokenizer_worker_num=1,
        disaggregation_mode="null",
    )
    return SimpleNamespace(**plain | differences)


def test_sglangs_parser_knows_the_policy_and_keeps_its_own():
    assert parsed("--schedule-policy", "astraea").schedule_policy == "astraea"
    assert parsed("--schedule-policy", "lpm").schedule_policy == "lpm"
    assert parsed().schedule_policy == "fcfs"


def test_our_flags_reach_spawned_processes_through_the_environment():
    parsed("--astraea-order", "mlfq", "--astraea-reap-after=60")
    assert (os.environ["ASTRAEA_ORDER"], os.environ["ASTRAEA_REAP_AFTER"]) == ("mlfq", "60")


def test_the_policy_is_accepted_where_the_seams_hold():
    args.check(asked())


def test_a_bad_variable_stops_the_start(monkeypatch):
    monkeypatch.setenv("ASTRAEA_ORDER", "fifo")
    with pytest.raises(ConfigError, match="ASTRAEA_ORDER"):
        args.check(asked())


def test_a_history_file_may_be_new_but_not_somebody_elses(monkeypatch, tmp_path):
    for text in (None, "{}", "[1, 2]", "not JSON", json.dumps(Predictor().dump())):
        file = tmp_path / "history.json"
        if text is not None:
            file.write_text(text)
        monkeypatch.setenv("ASTRAEA_HISTORY", str(file))
        with nullcontext() if text is None or "format" in text else pytest.raises(ConfigError, match="move it away"):
            args.check(asked())
    monkeypatch.setenv("ASTRAEA_HISTORY", str(tmp_path / "missing" / "history.json"))
    with pytest.raises(ConfigError, match="folder is missing"):
        args.check(asked())


def test_on_the_command_line_the_start_ends_with_one_line(monkeypatch):
    monkeypatch.setenv("ASTRAEA_ORDER", "fifo")
    monkeypatch.setattr(args, "_from_command_line", True)
    with pytest.raises(SystemExit, match=r"^astraea: --astraea-order .*'fifo'"):
        args.check(asked())


@pytest.mark.parametrize(
    "unsupported",
    [{"enable_priority_scheduling": True}, {"tokenizer_worker_num": 2}, {"disaggregation_mode": "prefill"}],
)
def test_what_cannot_work_is_refused_by_name(unsupported):
    with pytest.raises(ConfigError, match="does not work with --schedule-policy astraea"):
        args.check(asked(**unsupported))


def test_drift_stops_the_start_only_of_a_server_that_asks_for_the_policy(monkeypatch):
    from sglang.srt.managers.scheduler import Scheduler

    monkeypatch.delattr(Scheduler, "_poll_timeout_aborts")
    with pytest.raises(SeamError, match="_poll_timeout_aborts is gone"):
        args.check(asked())
    args.check(asked(schedule_policy="fcfs"))


def test_a_hook_that_did_not_apply_stops_the_start(monkeypatch):
    from sglang.srt.plugins.hook_registry import HookRegistry

    target = "sglang.srt.managers.scheduler.Scheduler.run_batch"
    monkeypatch.setattr(HookRegistry, "_patched", HookRegistry._patched - {target})
    with pytest.raises(SeamError, match=r"could not hook .*run_batch"):
        args.check(asked())
