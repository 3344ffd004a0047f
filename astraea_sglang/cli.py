"""The `astraea` command: serve a model, run the demo fleet, compare policies, build the embedded model."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from astraea_sglang import __version__
from astraea_sglang.errors import AstraeaError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Schedule whole agent programs, not single requests, inside an unmodified SGLang server.",
)
console = Console(stderr=True, highlight=False)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"astraea-sglang {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


SERVE_HELP = """Serve MODEL under `--schedule-policy astraea`; every further flag is SGLang's own.

MODEL is a checkpoint directory, a hub id, or [bold]smollm2[/bold] (built here from a package, no hub needed).
What is added to your flags is printed first; a flag you give yourself is never overridden.

  astraea serve smollm2 --port 30000
  astraea serve meta-llama/Llama-3.1-8B-Instruct --tp 2 --astraea-order mlfq
  astraea serve smollm2 --schedule-policy lpm          (SGLang's own policy, for comparison)

The scheduler's own flags: --astraea-order, --astraea-admission, --astraea-theta, --astraea-prediction,
--astraea-history, --astraea-retention, --astraea-end, --astraea-watermark, --astraea-preserve, --astraea-quota,
--astraea-lease, --astraea-tenant-header, --astraea-recognise, --astraea-patience, --astraea-queues,
--astraea-thresholds, --astraea-aging, --astraea-reap-after, --astraea-max-programs. Prefill chunks are mixed with
decodes unless you say --no-mixed-chunk.
`astraea serve smollm2 --help` explains them after SGLang's."""


@app.command(
    help=SERVE_HELP,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def serve(context: typer.Context) -> None:
    from astraea_sglang import serving
    from astraea_sglang.patches.launch import launch

    if not context.args or context.args[0] in ("-h", "--help"):
        print(context.get_help())
        raise typer.Exit(0 if context.args else 2)
    model, *flags = context.args
    if model.startswith("-"):
        raise AstraeaError(f"MODEL comes first, {model!r} was given; type: astraea serve smollm2 {model} ...")
    machine = {"cpu": not serving.has_accelerator(), "smollm2": model == "smollm2"}
    added = serving.added_flags(flags, **machine)
    environment = serving.added_environment(os.environ, **machine)
    if not {"-h", "--help"} & set(flags):
        console.print(f"astraea: added for you: {shlex.join([f'{k}={v}' for k, v in environment.items()] + added)}")
    os.environ.update(environment)
    flags = [flag for flag in flags if flag != serving.NO_MIXED]
    launch(["--model-path", str(_checkpoint(model)), *flags, *added])


def _checkpoint(model: str) -> str | Path:
    if model != "smollm2":
        return model
    from astraea_sglang import smollm2

    return smollm2.build(progress=lambda text: console.print(f"astraea: {text}"))


@app.command()
def model(name: Annotated[str, typer.Argument(help="Only [bold]smollm2[/bold] so far.")]) -> None:
    """Build the embedded model once, in the user cache, and print the checkpoint's directory."""
    if name != "smollm2":
        raise AstraeaError(f"no embedded model is called {name!r}; type: astraea model smollm2")
    print(_checkpoint(name))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the report, the picture and the server logs go.")] = Path("demo"),
    programs: Annotated[int, typer.Option(min=1, help="How many agent programs arrive.")] = 8,
    seed: Annotated[int, typer.Option(help="Of tasks, arrivals and tool latencies.")] = 7,
    policies: Annotated[
        str,
        typer.Option(
            help="Comma-separated: fcfs, lpm, ..., astraea, astraea:KEY=VALUE,...; KEY is a setting of serve, or host: "
            "a host pool (HiCache) of so many times the device's."
        ),
    ] = "fcfs,astraea",
) -> None:
    """Run a fleet of tool-using agents under SGLang's default policy, then under astraea, and compare."""
    from astraea_sglang.fleet.demo import run

    raise typer.Exit(run(out, programs=programs, seed=seed, policy_list=policies))


lab = typer.Typer(help="Compare policies.", no_args_is_help=False)
app.add_typer(lab, name="bench")

BENCH_HELP = """Compare policies on SGLang's real scheduler in virtual time: no GPU, minutes for hours.

  astraea bench --workload coding --load 0.8,1.3 --policies fcfs,lpm,astraea --seeds 1,2,3 --out report
  astraea bench --workload trace:fleet.csv --policies fcfs,astraea          (your own programs: astraea bench record)
  astraea bench --workload infercept --load 0.2 --url http://127.0.0.1:30000 (a live server, in real time)

Workloads: infercept, coding, mixed, forks (sub-agents), bfcl (real tasks), small (to try), coding-full, mixed-full,
trace:FILE."""

Workload = Annotated[str, typer.Option(help="One or several, comma-separated.")]
Out = Annotated[Path, typer.Option(help="Where results go; runs it holds already are not repeated.")]
Seeds = Annotated[str, typer.Option(help="Comma-separated: of programs and arrivals.")]
DeviceName = Annotated[str, typer.Option(help="Whose forward passes are emulated: a name, or a file of `calibrate`.")]
Programs = Annotated[int | None, typer.Option(min=1, max=100_000, help="How many; the workload's own number.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Runs side by side; one per core if not given.")]


@lab.callback(invoke_without_command=True, help=BENCH_HELP)
def bench(
    context: typer.Context,
    out: Out = Path("report"),
    workload: Workload = "infercept",
    load: Annotated[str, typer.Option(help="Multiples of the arrival rate at which fcfs begins to thrash.")] = "1.3",
    policies: Annotated[
        str | None,
        typer.Option(
            help="SGLang's own (fcfs, lpm, hrrn, ...), astraea, a baseline (`astraea bench baselines`), each "
            "with settings after a colon: astraea:mlfq, astraea:KEY=VALUE,..., fcfs:host=4, lpm:mixed-chunk=on; KEY is "
            "a setting of serve, or hints: what programs tell of themselves (none, class, declared, oracle). "
            "fcfs,lpm,hrrn,astraea if not given. With --url: what to call the server."
        ),
    ] = None,
    seeds: Seeds = "1",
    device: DeviceName = "h200-llama3.1-8b",
    programs: Programs = None,
    arrivals: Annotated[
        str, typer.Option(help="poisson, gamma:CV (3 for bursts), or closed:N: N programs alive at once.")
    ] = "poisson",
    mixed_chunk: Annotated[bool, typer.Option("--mixed-chunk", help="SGLang's --enable-mixed-chunk, for all.")] = False,
    overlap: Annotated[bool, typer.Option("--overlap", help="SGLang's overlapped scheduling, for all.")] = False,
    pool_tokens: Annotated[int, typer.Option(min=0, help="KV pool of the engine; 0: the workload's own.")] = 0,
    max_running: Annotated[int, typer.Option(min=0, help="Requests in a batch; 0: the workload's own.")] = 0,
    url: Annotated[
        str | None, typer.Option(help="Replay on this server, SGLang or OpenAI-compatible, in real time.")
    ] = None,
    jobs: Jobs = None,
) -> None:
    if context.invoked_subcommand:
        return
    from astraea_sglang.bench.command import DEFAULT_POLICIES, Asked, run, run_live

    asked = Asked(
        workload, load, policies or DEFAULT_POLICIES, seeds, device, programs, mixed_chunk, overlap, arrivals,
        pool_tokens, max_running,
    )  # fmt: skip
    raise typer.Exit(run_live(out, asked, url, label=policies) if url else run(out, asked, jobs=jobs))


@lab.command()
def knee(
    out: Out = Path("report/knee"),
    workload: Workload = "infercept,coding,mixed",
    seeds: Seeds = "1,2,3",
    device: DeviceName = "h200-llama3.1-8b",
    programs: Programs = None,
    low: Annotated[float, typer.Option("--from", help="A load that is carried, in multiples of the knee known.")] = 0.8,
    high: Annotated[float, typer.Option("--to", help="One that is not.")] = 1.25,
    jobs: Jobs = None,
) -> None:
    """Find the arrival rate at which fcfs begins to thrash: mean engine slowdown 3, by bisection."""
    from astraea_sglang.bench.command import Asked, run_knee

    asked = Asked(workload, seeds=seeds, device=device, programs=programs)
    raise typer.Exit(run_knee(out, asked, low=low, high=high, jobs=jobs))


@lab.command()
def baselines() -> None:
    """List the policies of others that --policies knows, with what they are made of here."""
    from astraea_sglang.bench.command import list_baselines

    list_baselines()


@lab.command()
def recognise(
    workload: Workload = "coding,infercept,mixed,bfcl",
    seeds: Seeds = "1",
    programs: Programs = None,
) -> None:
    """How well are programs found by their prompts alone? Precision and recall over the lab's workloads."""
    from astraea_sglang.bench.recognise import run

    raise typer.Exit(run(workload, seeds, programs))


@lab.command()
def calibrate(
    url: Annotated[str, typer.Option(help="An SGLang server that does nothing else meanwhile.")],
    out: Annotated[Path, typer.Option(help="The file to write, or a folder.")] = Path("device.json"),
) -> None:
    """Measure a live server's device, for `--device FILE`: three minutes of prompts and batches, then a fit."""
    from astraea_sglang.bench.calibrate import run

    raise typer.Exit(run(url, out))


@lab.command()
def record(
    upstream: Annotated[str, typer.Option(help="The server whose clients are recorded.")] = "http://127.0.0.1:30000",
    port: Annotated[int, typer.Option(help="Where they are to send their requests from now on.")] = 30100,
    out: Annotated[Path, typer.Option(help="The trace to write.")] = Path("fleet.csv"),
    format: Annotated[str, typer.Option(help="tracelab (chains), or dynamo (sub-agents, too).")] = "tracelab",
) -> None:
    """Record your own fleet: a proxy before any server, until Ctrl-C; replay with --workload trace:FILE."""
    from astraea_sglang.bench.record import run

    raise typer.Exit(run(upstream, port, out, format))


@app.command()
def bench_core(
    out: Annotated[Path, typer.Option(help="Where core.json goes.")] = Path("report/core"),
) -> None:
    """Time the policy itself: a pass over the waiting queue beside SGLang's lpm, a step, and what memory it takes."""
    from astraea_sglang.bench.core import run

    raise typer.Exit(run(out))


def main() -> None:
    """Entry point of `astraea`: an error raised on purpose ends it with one line and exit code 2."""
    try:
        app()
    except AstraeaError as error:
        console.print(f"astraea: {error}", style="red", soft_wrap=True, markup=False)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
