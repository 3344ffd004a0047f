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
--astraea-lease, --astraea-tenant-header, --astraea-patience, --astraea-queues, --astraea-thresholds, --astraea-aging,
--astraea-reap-after, --astraea-max-programs.
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


@app.command()
def bench(
    out: Annotated[Path, typer.Option(help="Where results go; runs it holds already are not repeated.")] = Path(
        "report"
    ),
    workload: Annotated[str, typer.Option(help="infercept, coding or mixed.")] = "infercept",
    load: Annotated[
        float, typer.Option(help="Arrivals, in multiples of the rate at which fcfs begins to thrash.")
    ] = 1.3,
    policies: Annotated[
        str,
        typer.Option(
            help="Comma-separated: fcfs, lpm, ..., astraea, astraea:ORDER, astraea:KEY=VALUE,...; KEY is a setting of "
            "serve, or hints: what programs tell of themselves (none, class, declared, oracle)."
        ),
    ] = "fcfs,lpm,hrrn,astraea",
    seeds: Annotated[str, typer.Option(help="Comma-separated: of programs and arrivals.")] = "1",
    device: Annotated[str, typer.Option(help="Whose forward passes are emulated.")] = "h200-llama3.1-8b",
    programs: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="How many arrive; the workload's own number if not given.")
    ] = None,
    mixed_chunk: Annotated[bool, typer.Option("--mixed-chunk", help="SGLang's --enable-mixed-chunk, for all.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs side by side; one per core if not given.")] = None,
) -> None:
    """Compare policies on SGLang's real scheduler in virtual time: an emulated device, no GPU, minutes for hours."""
    from astraea_sglang.bench.command import run

    raise typer.Exit(
        run(
            out,
            workload=workload,
            load=load,
            policy_list=policies,
            seed_list=seeds,
            device_name=device,
            programs=programs,
            mixed_chunk=mixed_chunk,
            jobs=jobs,
        )
    )


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
