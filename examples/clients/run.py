"""Agents and real clients against a real server: what each says it did, what the server saw of it, and how it knew.

python examples/clients/run.py [--only openai,anthropic] [--out table.md]

The clients need a newer `openai` than SGLang pins, so they have an environment of their own: `make examples` makes it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import httpx
import typer
from rich.console import Console
from rich.table import Table

from astraea_sglang import serving
from astraea_sglang.errors import AstraeaError, ConfigError, ServerError

HERE = Path(__file__).parent
OURS = ("01_react", "02_fan_out", "03_coding_agent")  # agents written with this package
PYTHON = HERE.parents[1] / ".venv-clients" / "bin" / "python"
CLIENTS = ("openai", "openai_agents", "langgraph", "litellm", "smolagents", "pydantic_ai", "anthropic")
FLAGS = ("--max-total-tokens", "8192", "--max-running-requests", "2", "--astraea-reap-after", "4")
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "OTEL_SDK_DISABLED": "true"}
NOTHING = "not seen"
WHY = {  # why a program is over, in the server's word -> how it knew
    "final": "session-final header",
    "ended": "event",
    "answered": "answer",
}


class Account(NamedTuple):
    """What did a client do, in its own words? Tools are those executed, in order."""

    client: str
    requests: int
    tools: tuple[str, ...]


class Row(NamedTuple):
    """A line of the table: in each column what the server saw and how, or "not seen"."""

    client: str
    identity: str
    boundary: str
    tools: str
    end: str
    children: str

    @property
    def conforms(self) -> bool:
        """Did the server see one program, as long as the client says, with its tools and its end?"""
        return not any(cell.startswith(NOTHING) for cell in self)


def compare(account: Account, seen: Sequence[Mapping[str, Any]]) -> Row:
    """What did the server see of what a client says that it did? `seen`: programs of /astraea/programs since then."""
    ids = {program["id"] for program in seen}
    roots = [program for program in seen if program.get("parent_id") not in ids]
    one = roots[0] if len(roots) == 1 else None
    segments = sum(program["segments"] for program in seen)
    named = tuple(tool for program in seen for tool in program["tools"])
    why = one.get("why", "still open") if one else ""
    return Row(
        account.client,
        one["identity"] or NOTHING if one else f"{NOTHING}: {len(roots)} programs",
        f"{segments} segments" if one and segments == account.requests else f"{NOTHING}: {segments} segments",
        f"{', '.join(named)}: parsed" if named == account.tools else f"{NOTHING}: {', '.join(named) or 'none'}",
        WHY.get(why, f"{NOTHING}: {why}" if why else NOTHING),
        str(len(seen) - len(roots) or "-"),
    )


def programs(server: httpx.Client) -> dict[str, dict[str, Any]]:
    """Which programs does the server know, by id? Those that are over have a `why`."""
    reply = server.get("/astraea/programs")
    if reply.status_code != 200:
        raise ServerError(f"GET /astraea/programs answers {reply.status_code}; give the server's admin key")
    rank = reply.json()["ranks"][0]
    return {program["id"]: program for program in (*rank["programs"], *rank["finished"])}


def ask(client: str, url: str, python: Path = PYTHON, timeout_s: float = 300) -> Account:
    """What did a client do when it was run against the server at `url`? Raises AstraeaError where it failed."""
    if not python.exists():
        raise ConfigError(f"there is no {python}: the clients' environment is missing; type: make examples")
    try:
        done = subprocess.run(
            [python, HERE / f"with_{client}.py", url],
            capture_output=True, text=True, timeout=timeout_s, env=os.environ | QUIET,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        raise AstraeaError(f"{client} has not come to its end within {timeout_s:g} s; is the server busy?") from late
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise AstraeaError(f"{client} exited with {done.returncode}: {said}")
    told = json.loads(done.stdout.splitlines()[-1])
    return Account(told["client"], told["requests"], tuple(told["tools"]))


def observe(
    client: str, server: httpx.Client, python: Path = PYTHON, patience_s: float = 15
) -> tuple[Account, list[dict[str, Any]]]:
    """What does a client say, and which programs came up meanwhile? Waits until they are over, `patience_s` at most."""
    before = programs(server)
    account = ask(client, str(server.base_url).rstrip("/"), python)
    return account, _settled(server, before, patience_s)


def _settled(server: httpx.Client, before: Container[str], patience_s: float = 15) -> list[dict[str, Any]]:
    deadline = time.monotonic() + patience_s
    while True:
        seen = [program for id, program in programs(server).items() if id not in before]
        if all("why" in program for program in seen) or time.monotonic() > deadline:
            return seen
        time.sleep(0.1)


def example(name: str, server: httpx.Client) -> Row:
    """What does the server see of one of our own agents? Raises AstraeaError where that failed."""
    before = programs(server)
    script = HERE.parent / f"{name}.py"
    done = subprocess.run([sys.executable, script, str(server.base_url)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise AstraeaError(f"{name} exited with {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    seen = _settled(server, before)
    ids = {program["id"] for program in seen}
    children = sum(program["parent_id"] in ids for program in seen)
    tools = dict.fromkeys(tool for program in seen for tool in program["tools"])
    return Row(
        name,
        ", ".join(sorted({program["identity"] for program in seen})) or NOTHING,
        f"{sum(program['segments'] for program in seen)} segments",
        f"{', '.join(tools)}: told" if tools else NOTHING,
        ", ".join(sorted({WHY.get(program.get("why", ""), NOTHING) for program in seen})),
        f"{children}: parent told" if children else "-",
    )


HEADINGS = ("client", "identity", "boundary", "tool name", "end", "sub-agents")


def markdown(rows: Sequence[Row]) -> str:
    """The table for the README."""
    lines = (HEADINGS, ("---",) * len(HEADINGS), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table(rows: Sequence[Row]) -> Table:
    """The table for a terminal."""
    shown = Table(title="What the server sees of clients that know nothing of it")
    for heading in HEADINGS:
        shown.add_column(heading)
    for row in rows:
        shown.add_row(*row, style=None if row.conforms else "yellow")
    return shown


def main(
    only: Annotated[str, typer.Option(help="Clients, comma-separated.")] = ",".join(CLIENTS),
    python: Annotated[Path, typer.Option(help="The Python of the clients' environment.")] = PYTHON,
    out: Annotated[Path | None, typer.Option(help="Write the table there too, as Markdown.")] = None,
    log: Annotated[Path, typer.Option(help="Where the server logs.")] = Path("report/clients/server.log"),
) -> None:
    """Start a server, run each client's two-tool task against it, and print what the server saw of each."""
    console, rows = Console(width=None if sys.stdout.isatty() else 120), []
    wanted = only.split(",")
    if unknown := set(wanted) - set(CLIENTS):
        raise typer.BadParameter(f"no client is called {min(unknown)!r}; choose from: {', '.join(CLIENTS)}")
    with serving.start("smollm2", FLAGS, log) as running, httpx.Client(base_url=running.url, timeout=60) as server:
        for name in OURS if wanted == list(CLIENTS) else ():
            console.print(f"examples/{name}.py")
            rows.append(example(name, server))
        for client in wanted:
            account, seen = observe(client, server, python)
            console.print(f"{client}: {account.requests} requests, tools {', '.join(account.tools)}")
            rows.append(compare(account, seen))
    console.print(table(rows))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(markdown(rows), "utf-8")
    if missed := [row.client for row in rows if not row.conforms]:
        raise AstraeaError(f"the server did not see all of {', '.join(missed)}; its log is {log}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except AstraeaError as error:
        raise SystemExit(f"error: {error}") from error
