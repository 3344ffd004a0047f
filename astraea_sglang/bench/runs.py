"""Runs side by side, each in a process of its own: SGLang keeps one live configuration per process."""

import json
import logging
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from astraea_sglang.bench import device, workloads
from astraea_sglang.bench.figures import Spec, figures
from astraea_sglang.bench.policies import parse
from astraea_sglang.errors import ConfigError

Result = dict[str, Any]
Watch = Callable[[Spec, float, int], None]  # hears of a run: emulated seconds, programs done

# String hashes and thread counts alike in every run; no accelerator is needed, and none is to be found.
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONWARNINGS": "ignore",
}


def path(folder: Path, spec: Spec) -> Path:
    """Where is a finished run kept?"""
    return folder / "runs" / f"{spec.name}.json"


def finished(folder: Path, spec: Spec) -> Result | None:
    """What did an earlier call leave of this very run? None if nothing, or a file that is torn or of another spec."""
    try:
        kept = json.loads(path(folder, spec).read_text())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and asdict(spec).items() <= kept.items() else None


def run_all(specs: Sequence[Spec], folder: Path, jobs: int, watch: Watch) -> Iterator[tuple[Spec, bool]]:
    """Run `specs`, `jobs` at a time; yields each as it ends, and whether it is `finished` now or its log says why not.

    Leaving the iteration, by Ctrl-C for instance, ends what still runs. Raises ConfigError where SGLang is missing.
    """
    if not specs:
        return
    if find_spec("sglang") is None:
        raise ConfigError(
            "SGLang, whose scheduler is run, is not installed; type: pip install 'astraea-sglang[server]'"
        )
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "astraea_sglang.patches.virtual"])  # imported once: 10 s and more
    with _environment():
        forkserver.ensure_running()
    waiting = deque(specs)
    live: dict[Connection, tuple[Any, Spec]] = {}
    try:
        while waiting or live:
            while waiting and len(live) < jobs:
                spec = waiting.popleft()
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_run, args=(spec, folder, there), daemon=True)
                process.start()
                there.close()
                live[here] = process, spec
            for here in wait(list(live)):
                assert isinstance(here, Connection)
                process, spec = live[here]
                try:
                    watch(spec, *here.recv())
                except EOFError:
                    process.join()
                    here.close()
                    del live[here]
                    yield spec, process.exitcode == 0
    finally:
        for process, _ in live.values():
            process.kill()
            process.join()


@contextmanager
def _environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(spec: Spec, folder: Path, report: Connection) -> None:
    """In a process of its own: one run, its figures to a file. All it prints goes to its log, kept if it fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    target = path(folder, spec)
    log = target.with_suffix(".log")
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.disable(logging.WARNING)
    result = measure(spec, lambda seconds, programs: report.send((seconds, programs)))
    draft = target.with_suffix(".part")
    draft.write_text(json.dumps(result, indent=1) + "\n")
    draft.replace(target)
    log.unlink()


def measure(spec: Spec, watch: Callable[[float, int], None] = lambda seconds, programs: None) -> Result:
    """What comes out of a run? Its spec and figures in one record. Once per process: SGLang has one configuration."""
    from astraea_sglang.patches.virtual import replay

    began = time.perf_counter()
    (policy,) = parse(spec.policy)
    for name in [name for name in os.environ if name.startswith("ASTRAEA_")]:
        del os.environ[name]  # of the user's shell; the policy's own are part of the spec
    os.environ.update(policy.environment)
    workload, emulated = workloads.workload(spec.workload), device.load(spec.device)
    plans = workloads.plan(spec.workload, load=spec.load, programs=spec.programs, seed=spec.seed)
    replayed = replay(
        plans,
        emulated,
        policy.name,
        pool_tokens=workload.pool_tokens,
        max_running=workload.max_running,
        mixed_chunk=spec.mixed_chunk,
        hints=policy.hints,
        watch=watch,
    )
    return {
        **asdict(spec),
        **figures(plans, replayed.segments, emulated),
        "emulated_s": replayed.emulated_s,
        "wall_s": time.perf_counter() - began,
        "passes": replayed.passes,
        "stalls": replayed.stalls,
        "table": replayed.table,
        "sglang": version("sglang"),
    }
