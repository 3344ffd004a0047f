"""`--schedule-policy astraea` and `--astraea-*` on SGLang's command line; the one check before anything is spawned."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry

from astraea_sglang.config import Config, flag, variable
from astraea_sglang.errors import AstraeaError, ConfigError, SeamError
from astraea_sglang.patches import memory
from astraea_sglang.patches.seams import SEAMS, drift

POLICY = "astraea"
_from_command_line = False


class _Setting(argparse._StoreAction):
    """Carries a flag to spawned processes in its environment variable; `check` judges all of them together.

    A _StoreAction, since SGLang's --config merger admits no other kind.
    """

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        os.environ[variable(self.dest.removeprefix("astraea_"))] = values


def add_flags(result: None, parser: argparse.ArgumentParser) -> None:
    """AFTER ServerArgs.add_cli_args: SGLang's parser takes our policy and our flags."""
    global _from_command_line
    _from_command_line = True
    for action in parser._actions:
        if action.dest == "schedule_policy" and action.choices is not None and POLICY not in action.choices:
            action.choices = [*action.choices, POLICY]
    group = parser.add_argument_group("astraea", "Scheduling of agent programs, with --schedule-policy astraea.")
    for setting in fields(Config):
        default = "" if setting.default == () else f" (default: {setting.default})"
        group.add_argument(flag(setting.name), action=_Setting, metavar="X", help=setting.metadata["help"] + default)


def check(server_args: Any) -> None:
    """BEFORE ServerArgs.resolve_once: refuse what cannot work while `astraea` is asked for; do nothing else otherwise.

    On the command line it exits with one line, under `sgl.Engine` it raises ConfigError or SeamError.
    """
    if server_args.schedule_policy != POLICY or getattr(server_args, "_resolution_finished", False):
        return
    with one_line():
        _check(server_args)


@contextmanager
def one_line() -> Iterator[None]:
    """What becomes of an error of ours in here? On the command line it exits with one line, else it is raised."""
    try:
        yield
    except AstraeaError as error:
        if _from_command_line:
            raise SystemExit(f"astraea: {error}") from None
        raise


def _check(server_args: Any) -> None:
    config = Config.from_environment(os.environ)
    if config.history:
        memory.check(config.history)
        if server_args.dp_size > 1:
            raise ConfigError("--astraea-history keeps the history of one scheduler; leave it or --dp-size out")
    if (problem := drift()) is not None:
        raise SeamError(problem)
    if missing := [seam.target for seam in SEAMS if seam.hook and seam.target not in HookRegistry._patched]:
        raise SeamError(f"SGLang could not hook {missing[0]}; its log above says why")
    unsupported = {
        "--enable-priority-scheduling": server_args.enable_priority_scheduling,
        f"--tokenizer-worker-num {server_args.tokenizer_worker_num}": server_args.tokenizer_worker_num > 1,
        f"--disaggregation-mode {server_args.disaggregation_mode}": server_args.disaggregation_mode != "null",
        "SGLANG_RUST_SERVER": os.environ.get("SGLANG_RUST_SERVER", "0").lower() in ("1", "true"),
    }
    for name, asked in unsupported.items():
        if asked:
            raise ConfigError(f"{name} does not work with --schedule-policy {POLICY} yet; leave one of the two out")
