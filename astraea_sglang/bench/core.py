"""`astraea bench-core`: what does the policy itself cost, in time and memory? Beside SGLang's own code, in one run."""

import gc
import json
import logging
import math
import os
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from astraea_sglang.config import Config, variable
from astraea_sglang.hints import Hints
from astraea_sglang.order import ORDERS
from astraea_sglang.program import Segment
from astraea_sglang.table import Pool, ProgramTable

SIZES = (10, 100, 1000, 10_000, 100_000)  # waiting segments
BESIDE = (128, 256, 512, 1000)  # the same, beside SGLang's lpm
ROUNDS = 9
PROGRAMS = 10_000  # whose memory is measured
HOSTILE = 20_000  # segments of a client that makes up classes, nodes and tools: more than are remembered
POOL = Pool(300_000, 256)
PAUSED = (
    ("fcfs, SGLang's LRU", "fcfs", {}),
    ("astraea, SGLang's LRU", "astraea", {"retention": "lru", "end": "keep"}),
    ("astraea", "astraea", {}),
)  # label, policy, settings


def run(out: Path) -> int:
    """Print five tables, leave core.json in `out`. Medians of seconds, as timeit without the garbage collector."""
    console = Console()
    grown = [_growth(size) for size in track(SIZES, "the plan alone", console=console)]
    with console.status("SGLang's scheduler, tree and lpm (half a minute to import)"):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        from astraea_sglang.patches.beside import measure

        passes, step_s = measure(BESIDE, ROUNDS)
    paused = [_paused(*policy) for policy in track(PAUSED, "1,000 paused programs, a full pool", console=console)]
    with console.status("1,000 open programs, a request at a time"):
        passed = _alone("astraea_sglang.patches.request_path")
    with console.status("memory"):
        memory = {"program_bytes": program_bytes(PROGRAMS), "history_bytes": history_bytes(HOSTILE)}
    out.mkdir(parents=True, exist_ok=True)
    result = {"growth": grown, "orders": _orders(), "beside": passes, "step_s": step_s, "paused": paused}
    result |= {"request_path": passed} | memory
    (out / "core.json").write_text(json.dumps(result, indent=1) + "\n")
    console.print(
        _table(
            "One plan of the default order and its gate, no prefix matched",
            ("waiting", "queue as left ms", "shuffled ms", "us a segment", "ns / (n log2 n)"),
            [
                (
                    f"{row['waiting']:,}",
                    f"{row['steady_s'] * 1e3:.3f}",
                    f"{row['shuffled_s'] * 1e3:.3f}",
                    f"{row['shuffled_s'] / row['waiting'] * 1e6:.2f}",
                    f"{row['shuffled_s'] / (row['waiting'] * math.log2(row['waiting'])) * 1e9:.0f}",
                )
                for row in grown
            ],
        )
    )
    console.print(
        _table(
            "Orders, 1,000 waiting segments of 1,000 programs, shuffled",
            ("order", "with gate ms", "without ms"),
            [(row["order"], f"{row['gated_s'] * 1e3:.2f}", f"{row['free_s'] * 1e3:.2f}") for row in result["orders"]],
        )
    )
    console.print(
        _table(
            "A whole pass of SGLang's scheduler and radix tree, beside lpm without its limit of 128 segments",
            ("waiting", "astraea ms", "lpm ms", "astraea / lpm", "prefixes matched"),
            [
                (
                    f"{row['waiting']:,}",
                    f"{row['ours_s'] * 1e3:.2f}",
                    f"{row['lpm_s'] * 1e3:.2f}",
                    f"{row['ours_s'] / row['lpm_s']:.2f}",
                    f"{row['matched']} of {row['waiting']}",
                )
                for row in passes
            ],
        )
    )
    console.print(
        _table(
            "A pass with 1,000 paused programs of 2,000 tokens and a full pool: what of it is eviction, and retention",
            (
                "",
                "tree core",
                "pass ms",
                "of that eviction ms",
                "retention ms",
                "share",
                "decision us",
                "lock+unlock us",
            ),
            [
                (
                    row["policy"],
                    row["core"],
                    f"{row['pass_s'] * 1e3:.3f}",
                    f"{row['evict_s'] * 1e3:.3f}",
                    f"{row['retention_s'] * 1e3:.3f}",
                    f"{row['retention_s'] / row['pass_s']:.1%}",
                    f"{row['decision_s'] * 1e6:.1f}" if "decision_s" in row else "",
                    f"{row['lock_s'] * 1e6:.1f}"
                    + (f" ({row['pin_s'] / row['lock_s']:.1f} x)" if "pin_s" in row else ""),
                )
                for row in paused
            ],
        )
    )
    console.print(path_table(passed))
    console.print(f"a step: {step_s * 1e6:.2f} us for each running request")
    console.print(f"a live program: {memory['program_bytes']:,.0f} bytes")
    console.print(f"history, full of made-up classes, nodes and tools: {memory['history_bytes'] / 2**20:.1f} MiB")
    console.print(f"{out / 'core.json'}", soft_wrap=True)
    return 0


def path_table(rows: Sequence[dict[str, Any]]) -> Table:
    """What does a request pass, part by part? Rows of request_path.py, named and nameless requests side by side."""
    us = {(row["part"], row["kind"]): (f"{row['p50_s'] * 1e6:.0f}", f"{row['p99_s'] * 1e6:.0f}") for row in rows}
    return _table(
        "What a request passes, with 1,000 programs open: us, p50 and p99",
        ("", "named p50", "p99", "nameless p50", "p99"),
        [(part, *us[part, "named"], *us[part, "nameless"]) for part in dict.fromkeys(row["part"] for row in rows)],
    )


def _paused(label: str, policy: str, settings: dict[str, str]) -> dict[str, Any]:
    """Passes under `policy`."""
    return _alone("astraea_sglang.patches.paused", policy, **settings) | {"policy": label}


def _alone(module: str, *arguments: str, **settings: str) -> Any:
    """What does a module print, as JSON? In a process of its own: SGLang keeps one live configuration per process."""
    from astraea_sglang.bench.runs import ENVIRONMENT

    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | ENVIRONMENT | {variable(name): value for name, value in settings.items()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def queue(size: int, **settings: Any) -> tuple[ProgramTable, list[tuple[Segment, int]]]:
    """A table with `size` waiting segments of as many programs; a third each is cold, shares a prefix, is resident."""
    table, random = ProgramTable(Config(**settings)), Random(1)
    waiting = []
    for i in range(size):
        table.advance(table.now + 0.001)
        hints = Hints(program_id=f"program-{i:06}", program_class=f"class {i % 7}")
        segment = table.arrive(f"r{i}", hints, random.randint(100, 4000), 512)
        waiting.append((segment, random.choice((0, 64, segment.prompt_tokens * 9 // 10))))
    return table, waiting


def seconds(work: Callable[[], Any]) -> float:
    """How long does one call take, the garbage collector at rest?"""
    gc.disable()
    try:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    finally:
        gc.enable()


def program_bytes(programs: int) -> float:
    """How much memory does a live program take that has run one segment and waits for its tool? Names included."""
    tracemalloc.start()
    table = ProgramTable(Config())
    table.advance(0.0)
    before = tracemalloc.get_traced_memory()[0]
    for i in range(programs):
        hints = Hints(program_id=f"{i:036}", program_class="react", next_tool="search", node="think")
        segment = table.arrive(f"{i:032}", hints, 1000 + i, 512)
        table.start(segment, 1000 + i)
        table.serve(segment, 100 + i % 50)
        table.finish(segment)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used / programs


def history_bytes(segments: int) -> int:
    """How much memory does learned history take after so many segments of a client that makes up every name?"""
    random = Random(1)
    tracemalloc.start()
    table = ProgramTable(Config())
    before = tracemalloc.get_traced_memory()[0]
    for i in range(segments):
        node, tool = (f"{random.randrange(9999):0128}" for _ in range(2))
        name = f"{i // 256:0128}"  # as many nodes in a class as it may have
        hints = Hints(program_id=name, program_class=name, node=f"{int(node) % 256:0128}", next_tool=tool)
        segment = table.arrive("r", hints, 1000 + i, 512)
        table.serve(segment, 100 + i)
        table.finish(segment)
        table.advance(table.now + random.random())
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used


def _growth(size: int) -> dict[str, Any]:
    table, waiting = queue(size)
    shuffled, steady = _plan_times(table, waiting, 3 if size > 10_000 else ROUNDS)
    return {"waiting": size, "shuffled_s": shuffled, "steady_s": steady}


def _orders() -> list[dict[str, Any]]:
    rows = []
    for order in sorted(ORDERS):
        gated, _ = _plan_times(*queue(1000, order=order), ROUNDS)
        free, _ = _plan_times(*queue(1000, order=order, admission="none"), ROUNDS)
        rows.append({"order": order, "gated_s": gated, "free_s": free})
    return rows


def _plan_times(table: ProgramTable, waiting: list[tuple[Segment, int]], rounds: int) -> tuple[float, float]:
    """Median seconds of a plan of the shuffled queue, and of the queue in the order the last plan gave."""
    table.plan(waiting, POOL)
    shuffled, steady = [], []
    for i in range(rounds):
        table.advance(table.now + 0.05)
        Random(i).shuffle(waiting)
        shuffled.append(seconds(lambda: table.plan(waiting, POOL)))
        place = {rid: n for n, rid in enumerate(table.plan(waiting, POOL).order)}
        waiting.sort(key=lambda pair: place[pair[0].rid])
        steady.append(seconds(lambda: table.plan(waiting, POOL)))
    return median(shuffled), median(steady)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", show_edge=False)
    for column in columns:
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(*row)
    return shown
