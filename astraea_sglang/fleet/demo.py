"""`astraea demo`: one fleet of agents, served twice by a real SGLang, once per policy; then a table and a picture."""

import asyncio
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer

from astraea_sglang import serving, smollm2
from astraea_sglang.bench.policies import Policy, parse
from astraea_sglang.errors import ConfigError, ServerError
from astraea_sglang.fleet import bfcl, report, timeline
from astraea_sglang.fleet.agents import Event, run_plan
from astraea_sglang.fleet.plan import PlannedProgram, make_plan
from astraea_sglang.fleet.runs import Run, machine

# Chosen for two cores: a run takes 80 to 100 seconds there, programs queue, and the KV pool holds three of the eight.
PROGRAMS = 8
SEED = 7
GAP_S = 2.0
TOOL_FACTOR = 0.1
MAX_CALLS = 4  # a quarter of the tasks: 2 to 4 calls each, about 900 tokens at the end
SERVER_FLAGS = ["--max-total-tokens=3072", "--max-running-requests=4", "--enable-metrics"]
COUNTERS = ("evicted_tokens_total", "num_retracted_requests_total", "scheduler_process_cpu_seconds_total")


def run(out: Path, *, programs: int = PROGRAMS, seed: int = SEED, policy_list: str = "fcfs,astraea") -> int:
    """How does the same fleet fare under each policy? Prints a table; leaves reports, picture and logs in `out`.

    Each finished run is saved at once as `run-<policy>.json`. Returns 0, or 1 when a program was lost, or 130 after
    Ctrl-C. Raises ConfigError, ModelError or ServerError when it cannot begin or a server does not start.
    """
    console = Console()
    policies = parse(policy_list, emulated=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(f"{out} cannot be made a folder ({problem.strerror}); type --out FOLDER") from problem
    runs: list[Run] = []
    try:
        with _progress(console) as progress:
            step = progress.add_task("model", total=None)
            tasks = [task for task in bfcl.tasks() if sum(map(len, task.calls)) <= MAX_CALLS]
            plan = make_plan(tasks, programs=programs, seed=seed, gap_s=GAP_S, factor=TOOL_FACTOR)
            model = smollm2.build(lambda line: progress.update(step, description=f"model: {line}"))
            progress.update(step, description="model ready", total=1, completed=1)
            for policy in policies:
                runs.append(_measure(policy, plan, model, seed, out, progress))
                runs[-1].save(out / f"run-{_name(policy.label)}.json")
    except KeyboardInterrupt:
        kept = ", ".join(str(out / f"run-{_name(done.policy)}.json") for done in runs)
        console.print(f"interrupted; kept: {kept or 'nothing, no run had ended'}", soft_wrap=True)
        return 130
    return _report(runs, out, console)


def _name(label: str) -> str:
    return label.replace(":", "+").replace(",", "+")


def _measure(
    policy: Policy, plan: Sequence[PlannedProgram], model: Path, seed: int, out: Path, progress: Progress
) -> Run:
    step = progress.add_task(f"{policy.label}: starting the server", total=None)
    encode = Tokenizer.from_file(str(model / "tokenizer.json")).encode
    with serving.start(model, [*policy.flags, *SERVER_FLAGS], out / f"server-{_name(policy.label)}.log") as server:
        info = _ask(server.url, "GET", "/server_info").json()
        _ask(server.url, "POST", "/flush_cache")
        before = _counters(server.url)
        progress.update(step, total=sum(len(program.tool_seconds) for program in plan))
        watch = _Watch(policy.label, len(plan), progress, step)
        programs = asyncio.run(run_plan(plan, server.url, lambda text: encode(text).ids, watch))
        after = _counters(server.url)
    settings = {
        "machine": machine(),
        "sglang": version("sglang"),
        "model": model.name,
        "kv_tokens": info["max_total_num_tokens"],
        "max_running_requests": info["max_running_requests"],
        "seed": seed,
        "gap_s": GAP_S,
        "factor": TOOL_FACTOR,
    }
    return Run(policy.label, settings, {name: after[name] - before[name] for name in COUNTERS}, programs)


class _Watch:
    """Shows what the fleet does: the bar counts segments, the text counts programs."""

    def __init__(self, policy: str, programs: int, progress: Progress, step: TaskID) -> None:
        self._policy, self._programs, self._progress, self._step = policy, programs, progress, step
        self._ended: dict[Event, int] = {"finished": 0, "failed": 0}
        self._show()

    def __call__(self, event: Event, program: str) -> None:
        if event == "segment":
            self._progress.advance(self._step)
        elif event in self._ended:
            self._ended[event] += 1
            self._show()

    def _show(self) -> None:
        lost = f", {self._ended['failed']} lost" if self._ended["failed"] else ""
        text = f"{self._policy}: {self._ended['finished']} of {self._programs} programs done{lost}, segments"
        self._progress.update(self._step, description=text)


def _report(runs: Sequence[Run], out: Path, console: Console) -> int:
    (out / "report.json").write_text(report.as_json(runs))
    (out / "report.md").write_text(report.markdown(runs))
    timeline.draw(runs, out / "timeline.png")
    console.print()
    console.print(report.table(runs))
    console.print(report.conditions(runs[0]), style="dim", highlight=False)
    lost = [(run.policy, program) for run in runs for program in run.programs if program.error is not None]
    for policy, program in lost:
        console.print(f"lost under {policy}: {program.id}: {program.error}", style="red", markup=False, soft_wrap=True)
    console.print(f"\n{out / 'timeline.png'}  {out / 'report.md'}  {out / 'report.json'}", soft_wrap=True)
    return 1 if lost else 0


def _progress(console: Console) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, refresh_per_second=4)  # two cores: leave them to the fleet


def _ask(url: str, method: str, path: str) -> httpx.Response:
    try:
        return httpx.request(method, url + path, timeout=60, trust_env=False).raise_for_status()
    except httpx.HTTPError as problem:
        raise ServerError(f"{method} {path} failed: {problem}; see the server's log in the output folder") from problem


def _counters(url: str) -> dict[str, float]:
    """The server's COUNTERS now, summed over their labels; /metrics leaves out those that never counted."""
    totals: dict[str, float] = {name: 0.0 for name in COUNTERS}
    for family in text_string_to_metric_families(_ask(url, "GET", "/metrics").text):
        for sample in family.samples:
            if (name := sample.name.removeprefix("sglang:")) in totals:
                totals[name] += sample.value
    return totals
