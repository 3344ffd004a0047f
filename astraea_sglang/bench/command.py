"""`astraea bench`: the same agent programs on SGLang's scheduler under several policies, in virtual time."""

import os
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from astraea_sglang.bench import device, policies, report, runs, workloads
from astraea_sglang.bench.figures import Spec
from astraea_sglang.errors import ConfigError


def run(
    out: Path,
    *,
    workload: str,
    load: float,
    policy_list: str,
    seed_list: str,
    device_name: str,
    programs: int | None,
    mixed_chunk: bool,
    jobs: int | None,
) -> int:
    """How do the policies compare? Prints a table; leaves summary.json, summary.csv, jct.png and every run in `out`.

    Runs that `out` holds already are not repeated. Returns 0, 1 when a run failed, 130 after Ctrl-C (finished runs are
    kept and reported). Raises ConfigError when an argument is wrong.
    """
    wanted = specs(workload, load, policy_list, seed_list, device_name, programs, mixed_chunk)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(f"{out} cannot be made a folder ({problem.strerror}); type --out FOLDER") from problem
    console = Console()
    missing = [spec for spec in wanted if runs.finished(out, spec) is None]
    if there := len(wanted) - len(missing):
        console.print(f"{there} of {len(wanted)} runs are in {out} already; remove its runs/ to repeat them")
    failed, code = [], 0
    try:
        with _progress(console) as progress:
            total = progress.add_task("runs", total=len(wanted), completed=there)
            tasks: dict[Spec, TaskID] = {}

            def watch(spec: Spec, seconds: float, done: int) -> None:
                if spec not in tasks:
                    tasks[spec] = progress.add_task("", total=spec.programs)
                text = f"  {spec.policy} seed {spec.seed}: {seconds:,.0f} emulated s, programs"
                progress.update(tasks[spec], description=text, completed=done)

            for spec, good in runs.run_all(missing, out, jobs or os.cpu_count() or 1, watch):
                if spec in tasks:
                    progress.remove_task(tasks[spec])
                progress.advance(total)
                if not good:
                    failed.append(spec)
    except KeyboardInterrupt:
        code = 130
    results = [kept for spec in wanted if (kept := runs.finished(out, spec)) is not None]
    if code:
        console.print(f"interrupted: {len(results)} of {len(wanted)} runs are kept; the same command goes on there")
    for spec in failed:
        log = runs.path(out, spec).with_suffix(".log")
        last = log.read_text().strip().splitlines()[-1:] if log.exists() else []
        why = f"{spec.policy} seed {spec.seed} failed: {''.join(last)} ({log})"
        console.print(why, style="red", markup=False, soft_wrap=True)
    if results:
        report.save(results, out)
        seeds = ", ".join(str(seed) for seed in dict.fromkeys(spec.seed for spec in wanted))
        console.print(f"\n{report.title(results[0])}, seeds {seeds}", style="bold", soft_wrap=True)
        console.print(report.table(results))
        console.print(
            "engine = JCT - tools; recomputed = tokens a program; in brackets the ratio to fcfs",
            style="dim",
            soft_wrap=True,
        )
        console.print(f"{out / 'summary.json'}  {out / 'summary.csv'}  {out / 'jct.png'}", soft_wrap=True)
    return code or (1 if failed else 0)


def specs(
    workload: str,
    load: float,
    policy_list: str,
    seed_list: str,
    device_name: str,
    programs: int | None,
    mixed_chunk: bool,
) -> list[Spec]:
    """Which runs do the arguments ask for? Every policy with every seed. Raises ConfigError that says what there is."""
    chosen = workloads.workload(workload)
    device.load(device_name)
    if not 0 < load < float("inf"):
        raise ConfigError(f"--load {load:g}: give a multiple of the knee above 0, such as 1.3")
    try:
        seeds = list(dict.fromkeys(int(part) for part in seed_list.split(",")))
    except ValueError:
        raise ConfigError(f"--seeds {seed_list!r}: give whole numbers separated by commas, such as 1,2,3") from None
    return [
        Spec(workload, load, policy.label, seed, programs or chosen.programs, device_name, mixed_chunk)
        for seed in seeds
        for policy in policies.parse(policy_list)
    ]


def _progress(console: Console) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, refresh_per_second=4)
