"""`astraea bench`: the same agent programs under several policies, in virtual time or against a live server."""

import asyncio
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from astraea_sglang import __version__
from astraea_sglang.bench import device, policies, report, runs, workloads
from astraea_sglang.bench.baselines import BASELINES
from astraea_sglang.bench.figures import Spec
from astraea_sglang.bench.knee import Knee, knee
from astraea_sglang.bench.stats import LIMIT, pooled, scenarios
from astraea_sglang.errors import ConfigError

DEFAULT_POLICIES = "fcfs,lpm,hrrn,astraea"
TOLERANCE = 0.04  # of a knee


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be compared: lists as they are typed, separated by commas; None and 0 for the workload's own."""

    workload: str = "infercept"
    load: str = "1.3"
    policies: str = DEFAULT_POLICIES
    seeds: str = "1"
    device: str = "h200-llama3.1-8b"
    programs: int | None = None
    mixed_chunk: bool = False
    overlap: bool = False
    arrivals: str = "poisson"
    pool_tokens: int = 0
    max_running: int = 0

    def specs(self) -> list[Spec]:
        """Which runs are these? All of a scenario together. Raises ConfigError, which says what there is."""
        device.load(self.device)
        closed = workloads.concurrency(self.arrivals) is not None
        loads = [1.0] if closed else [_load(part) for part in self.load.split(",")]
        try:
            seeds = list(dict.fromkeys(int(part) for part in self.seeds.split(",")))
        except ValueError:
            raise ConfigError(
                f"--seeds {self.seeds!r}: give whole numbers separated by commas, such as 1,2,3"
            ) from None
        chosen = policies.parse(self.policies)
        one = Spec("", 1.0, "", 0, 0, self.device, self.mixed_chunk, self.overlap, self.arrivals)
        sized = replace(one, pool_tokens=self.pool_tokens, max_running=self.max_running)
        return [
            replace(sized, workload=name, load=load, policy=policy.label, seed=seed, programs=self.programs or count)
            for name in dict.fromkeys(self.workload.split(","))
            for count in [workloads.workload(name).programs]
            for load in dict.fromkeys(loads)
            for seed in seeds
            for policy in chosen
        ]


def run(out: Path, asked: Asked, *, jobs: int | None = None) -> int:
    """How do the policies compare? Prints tables; leaves index.html, summary.json, summary.csv, pictures in `out`.

    Runs that `out` holds already are not repeated. Returns 0, 1 when a run failed, 130 after Ctrl-C (finished runs are
    kept and reported). Raises ConfigError when an argument is wrong.
    """
    wanted = asked.specs()
    console = Console()
    failed, code = _run(wanted, out, jobs, console)
    results = [kept for spec in wanted if (kept := runs.finished(out, spec)) is not None]
    if code:
        console.print(f"interrupted: {len(results)} of {len(wanted)} runs are kept; the same command goes on there")
    for spec in failed:
        log = runs.path(out, spec).with_suffix(".log")
        last = log.read_text().strip().splitlines()[-1:] if log.exists() else []
        why = f"{spec.workload} {spec.load:g} {spec.policy} seed {spec.seed} failed: {''.join(last)} ({log})"
        console.print(why, style="red", markup=False, soft_wrap=True)
    if results:
        tell(results, out, console)
    return code or (1 if failed else 0)


def run_live(out: Path, asked: Asked, url: str, *, label: str | None = None) -> int:
    """What do the programs experience on the server at `url`? As `run`, for one workload, load and seed.

    `label` is what the report calls it, the server's own schedule policy if not given. What was measured when the
    server dies or Ctrl-C is pressed is kept, and the same command goes on there.
    """
    from astraea_sglang.bench import live, probe

    specs = Asked.specs(replace(asked, policies="fcfs"))
    if len(specs) > 1:
        raise ConfigError(f"--url replays one workload, load and seed at a time; {len(specs)} were asked for")
    console = Console()

    async def server() -> probe.Target:
        async with live.connect(url) as client:
            return await probe.probe(client, None, lambda text: None)

    info = asyncio.run(server()).info
    spec = replace(specs[0], policy=label or str(info.get("schedule_policy") or "server"))
    _folder(out)
    if runs.finished(out, spec) is None:
        with _progress(console) as progress:
            task = progress.add_task(f"{spec.policy} at {url}", total=spec.programs)
            try:
                runs.measure_live(
                    spec, out, url, lambda seconds, done: progress.update(task, completed=done), console.print
                )
            except KeyboardInterrupt:
                console.print("interrupted: what ended is kept; the same command goes on there")
                return 130
    results = [kept] if (kept := runs.finished(out, spec)) else []
    tell([*_others(out, spec), *results], out, console)
    return 0


def run_knee(out: Path, asked: Asked, *, low: float, high: float, jobs: int | None = None) -> int:
    """At which arrival rate does fcfs begin to thrash? Prints it, and every measurement, for each workload.

    The rate up to which the mean engine slowdown of all seeds' programs stays within LIMIT, found by bisection between
    the loads `low` and `high`, as multiples of the knee that is in force.
    """
    console = Console()
    for name in asked.workload.split(","):
        known = workloads.workload(name).knee

        def measure(load: float, name: str = name) -> float:
            specs = replace(asked, workload=name, load=f"{load!r}", policies="fcfs").specs()
            failed, code = _run(specs, out, jobs, console)
            if failed or code:
                raise ConfigError(f"a knee needs every run; the same command goes on at load {load:g}")
            return pooled([kept for spec in specs if (kept := runs.finished(out, spec))])["slowdown_mean"]

        found: Knee = knee(measure, low, high, limit=LIMIT, tolerance=TOLERANCE)
        for load, slowdown in found.points:
            console.print(f"  {load * known:8.4f} programs/s: mean engine slowdown {slowdown:.2f}")
        if not found.found:
            raise ConfigError(f"{name}: no knee between loads {low:g} and {high:g}; give others with --from and --to")
        console.print(f"{name}: {found.low * known:.4f} programs/s ({found.high * known:.4f} is beyond)", style="bold")
    return 0


def list_baselines() -> None:
    """Print every baseline: what it means, whose it is, which settings it stands for."""
    table = Table(box=box.SIMPLE, show_edge=False, show_header=False)
    for name, baseline in BASELINES.items():
        here = f"{baseline.policy}:{baseline.settings}" if baseline.settings else baseline.policy
        table.add_row(Text(name, style="bold"), f"{baseline.meaning}\n{baseline.source}\n{here}\n")
    Console().print(table)


def tell(results: Sequence[Mapping[str, Any]], out: Path, console: Console) -> None:
    """Print a table for every scenario, and write the report."""
    held = [dict(result) for result in results]
    for scenario in scenarios(held):
        seeds = ", ".join(str(seed) for seed in dict.fromkeys(result["seed"] for result in scenario))
        console.print(f"\n{report.title(scenario[0])}, seeds {seeds}", style="bold", soft_wrap=True)
        console.print(report.table(scenario, console.width))
    console.print(
        "engine = JCT - tools; recomputed = tokens a program; in brackets the ratio to fcfs, below it its 95% interval",
        style="dim",
        soft_wrap=True,
    )
    page = report.save(held, out, about())
    console.print(f"{page}  {out / 'summary.json'}  {out / 'summary.csv'}", soft_wrap=True)


def about() -> dict[str, str]:
    """What should a reader of a report know of how it came about? The command, this package's version or commit."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    command = shlex.join(["astraea", *sys.argv[1:]])
    return {"command": command, "version": __version__} | ({"commit": commit} if commit else {})


def _others(out: Path, spec: Spec) -> list[dict[str, Any]]:
    """What other servers did with the same programs, if `out` has it."""
    found = []
    for file in sorted((out / "runs").glob("*.json")):
        kept = runs.read(file)
        same = {key: value for key, value in asdict(spec).items() if key != "policy"}
        if kept and same.items() <= kept.items() and kept["policy"] != spec.policy:
            found.append(kept)
    return found


def _run(wanted: Sequence[Spec], out: Path, jobs: int | None, console: Console) -> tuple[list[Spec], int]:
    """Run what `out` does not hold: which failed, and 130 if Ctrl-C was pressed."""
    _folder(out)
    missing = [spec for spec in wanted if runs.finished(out, spec) is None]
    if there := len(wanted) - len(missing):
        console.print(f"{there} of {len(wanted)} runs are in {out} already; remove its runs/ to repeat them")
    failed: list[Spec] = []
    if not missing:
        return failed, 0
    try:
        with _progress(console) as progress:
            total = progress.add_task("runs", total=len(wanted), completed=there)
            tasks: dict[Spec, TaskID] = {}

            def watch(spec: Spec, seconds: float, done: int) -> None:
                if spec not in tasks:
                    tasks[spec] = progress.add_task("", total=spec.programs)
                where = f"{spec.workload} {spec.load:g} {spec.policy} seed {spec.seed}"
                progress.update(tasks[spec], description=f"  {where}: {seconds:,.0f} emulated s", completed=done)

            for spec, good in runs.run_all(missing, out, jobs or os.cpu_count() or 1, watch):
                if spec in tasks:
                    progress.remove_task(tasks[spec])
                progress.advance(total)
                if not good:
                    failed.append(spec)
    except KeyboardInterrupt:
        return failed, 130
    return failed, 0


def _folder(out: Path) -> None:
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(f"{out} cannot be made a folder ({problem.strerror}); type --out FOLDER") from problem


def _load(text: str) -> float:
    try:
        load = float(text)
    except ValueError:
        load = 0.0
    if not 0 < load < float("inf"):
        raise ConfigError(f"--load {text}: give multiples of the knee above 0, such as 1.3 or 0.8,1.3")
    return load


def _progress(console: Console) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, refresh_per_second=4)
