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

from astraea_sglang.bench import bfcl, device, workloads
from astraea_sglang.bench.baselines import UNLOADED
from astraea_sglang.bench.figures import Spec, alone, figures
from astraea_sglang.bench.plans import ProgramPlan
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
    kept = read(path(folder, spec))
    return kept if kept and asdict(spec).items() <= kept.items() else None


def read(file: Path) -> Result | None:
    """What is in the file of a run? None if it cannot be read or is none."""
    try:
        kept = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) else None


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
    _keep(result, target)
    log.unlink()


def _keep(result: Result, target: Path) -> None:
    draft = target.with_suffix(".part")
    draft.write_text(json.dumps(result) + "\n")
    draft.replace(target)


def measure_live(
    spec: Spec, folder: Path, url: str, watch: Callable[[float, int], None], note: Callable[[str], None]
) -> None:
    """Replay a run's programs on the server at `url` and keep what comes out; `spec.policy` is only its label.

    What has ended is in a journal beside it, from which the same call goes on. Raises as live.replay does.
    """
    from astraea_sglang.bench import live

    began, target = time.perf_counter(), path(folder, spec)
    emulated = device.load(spec.device)
    if spec.workload == "bfcl":
        rate = spec.load * workloads.workload(spec.workload).knee
        plans, segments = bfcl.live_bfcl(url, programs=spec.programs, seed=spec.seed, gap_s=1 / rate)
    else:
        plans = planned(spec)
        options = {"concurrency": workloads.concurrency(spec.arrivals), "journal": target.with_suffix(".jsonl")}
        segments = live.run(plans, url, watch=watch, note=note, **options)
    seconds = time.perf_counter() - began
    _keep({**asdict(spec), **figures(plans, segments, emulated), "emulated_s": seconds, "wall_s": seconds}, target)


def planned(spec: Spec) -> list[ProgramPlan]:
    """Which programs is a run of?"""
    return workloads.plan(spec.workload, load=spec.load, programs=spec.programs, seed=spec.seed, arrivals=spec.arrivals)


def measure(spec: Spec, watch: Callable[[float, int], None] = lambda seconds, programs: None) -> Result:
    """What comes out of a run? Its spec and figures in one record. Once per process: SGLang has one configuration."""
    from astraea_sglang.patches.virtual import replay

    began = time.perf_counter()
    (policy,) = parse(spec.policy)
    for name in [name for name in os.environ if name.startswith("ASTRAEA_")]:
        del os.environ[name]  # of the user's shell; the policy's own are part of the spec
    os.environ.update(policy.environment)
    workload, emulated = workloads.workload(spec.workload), device.load(spec.device)
    plans = planned(spec)
    about = {**asdict(spec), "sglang": version("sglang")}
    if policy.name == UNLOADED:
        return about | figures(plans, alone(plans, emulated), emulated) | {
            "emulated_s": 0.0, "wall_s": time.perf_counter() - began, "passes": 0, "stalls": 0, "table": {}
        }  # fmt: skip
    replayed = replay(
        plans,
        emulated,
        policy.name,
        pool_tokens=spec.pool_tokens or workload.pool_tokens,
        max_running=spec.max_running or workload.max_running,
        overlap=spec.overlap,
        concurrency=workloads.concurrency(spec.arrivals),
        hints=policy.hints,
        watch=watch,
        **({"enable_mixed_chunk": spec.mixed_chunk} | dict(policy.engine)),
    )
    return {
        **about,
        **figures(plans, replayed.segments, emulated),
        "emulated_s": replayed.emulated_s,
        "wall_s": time.perf_counter() - began,
        "passes": replayed.passes,
        "stalls": replayed.stalls,
        "copied_tokens": replayed.copied,
        "table": replayed.table,
        "memory": replayed.memory,
    }
