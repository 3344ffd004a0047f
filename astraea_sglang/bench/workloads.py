"""Which programs arrive when, and what do they do? Pure plans of agent programs: equal arguments, equal plan.

Token counts and seconds come from distributions with a source each; nothing here knows an engine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import NamedTuple

from astraea_sglang.bench import tasks, traces
from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan, Shared, families
from astraea_sglang.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Workload:
    """A mix of program classes and the engine it is meant for."""

    mix: dict[str, float]  # class: share
    programs: int  # how many make a run long enough to show what a policy does
    pool_tokens: int  # KV pool of the engine
    max_running: int  # requests in one batch
    knee: float  # programs per second at which SGLang's fcfs begins to thrash on this engine: load 1.0


class _ToolUser(NamedTuple):
    tool_mean: float  # seconds
    tool_sd: float
    calls_mean: float
    calls_sd: float
    context_mean: float  # tokens at a call
    context_sd: float
    output_mean: float  # tokens of a segment
    answer_mean: float  # tokens of a tool's answer


# Tools, calls and contexts: InferCept (arXiv 2402.01869, table 1). Output and answer lengths are assumed.
INFERCEPT = {
    "math": _ToolUser(9e-5, 6e-5, 3.75, 1.3, 1422, 738, 60, 20),
    "qa": _ToolUser(0.69, 0.17, 2.52, 1.73, 1846, 428, 60, 100),
    "ve": _ToolUser(0.09, 0.014, 28.18, 15.2, 2185, 115, 40, 20),
    "chatbot": _ToolUser(28.6, 15.6, 4.45, 1.96, 753, 703, 150, 40),
    "image": _ToolUser(20.03, 7.8, 6.91, 3.93, 1247, 792, 60, 30),
    "tts": _ToolUser(17.24, 7.6, 6.91, 3.93, 1251, 792, 60, 30),
}

_MIXED = {name: 1 / 12 for name in INFERCEPT} | {"coding": 0.1, "oneshot": 0.4}

# Knees: where the mean engine slowdown of fcfs, seeds 1 to 3 pooled, reaches 3 on device h200-llama3.1-8b with SGLang
# 0.5.23 (`astraea bench knee`). Pools are smaller than an H200's, so that a run takes a minute or two; `-full` are not.
WORKLOADS = {
    "infercept": Workload({name: 1 / 6 for name in INFERCEPT}, 1000, 60_000, 64, 1.71),
    "coding": Workload({"coding": 1.0}, 150, 150_000, 96, 0.065),
    "mixed": Workload(_MIXED, 400, 150_000, 96, 1.04),
    "small": Workload({name: 1 / 3 for name in ("math", "qa", "ve")}, 60, 12_000, 16, 0.53),
    "forks": Workload({"research": 1.0}, 150, 60_000, 64, 0.31),
    "bfcl": Workload({}, 400, 20_000, 64, 20.0),
    "coding-full": Workload({"coding": 1.0}, 250, 300_000, 256, 0.12),
    "mixed-full": Workload(_MIXED, 1000, 300_000, 256, 1.26),
}


TRACE = "trace:"  # before the path of a trace file, where the name of a workload is asked for


def workload(name: str) -> Workload:
    """The workload called `name`, or the trace in the file of `trace:FILE`. Raises ConfigError.

    A trace is meant for an engine of 300,000 tokens and 256 requests, and its load 1.0 is the speed it was recorded at.
    """
    if name.startswith(TRACE):
        return Workload({}, len(families(traces.read(Path(name.removeprefix(TRACE))))), 300_000, 256, 1.0)
    if name not in WORKLOADS:
        known = ", ".join(sorted(WORKLOADS))
        raise ConfigError(f"--workload {name} is unknown; choose one of: {known}, or {TRACE}FILE")
    return WORKLOADS[name]


def plan(name: str, *, load: float, programs: int, seed: int, arrivals: str = "poisson") -> list[ProgramPlan]:
    """Which programs arrive at `load` times the workload's knee? In the order of their arrivals, with child sessions.

    With one seed the programs are the same at every load; only their arrivals move together or apart. `arrivals` is
    `poisson`, or `gamma:CV` for gaps with that coefficient of variation, bursts above 1; with `closed:N` nobody's
    arrival counts.
    """
    if name.startswith(TRACE):
        return _recorded(Path(name.removeprefix(TRACE)), load, programs)
    if name == "bfcl":
        return tasks.plan(_arrivals(arrivals, seed, load * WORKLOADS[name].knee, programs), seed)
    chosen = workload(name)
    bodies = Random(f"programs {seed}")
    plans: list[ProgramPlan] = []
    for number, arrival in enumerate(_arrivals(arrivals, seed, load * chosen.knee, programs)):
        (kind,) = bodies.choices(list(chosen.mix), list(chosen.mix.values()))
        if kind == "research":
            plans += _research(f"p{number:05}", arrival, bodies)
            continue
        shared, longest, segments = _body(kind, bodies)
        plans.append(ProgramPlan(f"p{number:05}", kind, arrival, longest, tuple(segments), shared))
    return plans


def _recorded(path: Path, load: float, programs: int) -> list[ProgramPlan]:
    """The first `programs` of a trace, `load` times as fast, the first at 0. Its tools take their time."""
    found = families(traces.read(path))[:programs]
    first = min((family[0].arrival_s for family in found), default=0.0)
    return [
        replace(plan, arrival_s=0.0 if plan.parent else (plan.arrival_s - first) / load)
        for family in found
        for plan in family
    ]


def _arrivals(arrivals: str, seed: int, rate: float, programs: int) -> list[float]:
    gap, arrival, found = _gaps(arrivals, seed), 0.0, []
    for _ in range(programs):
        arrival += gap() / rate
        found.append(arrival)
    return found


def concurrency(arrivals: str) -> int | None:
    """How many programs are alive in a closed loop? None for arrivals of their own. Raises ConfigError."""
    kind, _, number = arrivals.partition(":")
    if kind == "closed" and number.isdigit() and int(number):
        return int(number)
    _gaps(arrivals, 0)
    return None


def _gaps(arrivals: str, seed: int) -> Callable[[], float]:
    """Gaps between arrivals, of mean 1."""
    kind, _, number = arrivals.partition(":")
    random = Random(f"arrivals {seed}")
    if arrivals == "poisson" or (kind == "closed" and number.isdigit() and int(number)):
        return lambda: random.expovariate(1.0)
    if kind == "gamma" and number.replace(".", "", 1).isdigit() and 0 < float(number) <= 20:
        shape = float(number) ** -2
        return lambda: random.gammavariate(shape, 1 / shape)
    raise ConfigError(
        f"--arrivals {arrivals!r}: give poisson, gamma:CV with 0 < CV <= 20, such as gamma:3 for bursts, "
        "or closed:N for N programs alive at once"
    )


def _body(kind: str, random: Random) -> tuple[tuple[Shared, ...], int, list[SegmentPlan]]:
    if kind == "coding":
        return (Shared("coding", 4000),), 1024, _coding(random)
    if kind == "oneshot":
        return (
            (),
            1024,
            [SegmentPlan(_tokens(random, 500, 1.0, 16, 8000), _tokens(random, 250, 0.8, 4, 1000), 0.0, None)],
        )
    return (), 512, _tool_user(kind, INFERCEPT[kind], random)


def _coding(random: Random) -> list[SegmentPlan]:
    """Many turns over a context that only grows; tools: median 0.8 s, 99% below 60 s (after TraceLab, shortened)."""
    turns = _tokens(random, 26, 0.5, 10, 60)
    segments = []
    for turn in range(turns):
        new = _tokens(random, 2000, 0.6, 100, 1_000_000) if turn == 0 else _tokens(random, 400, 1.0, 10, 6000)
        output = _tokens(random, 220, 0.8, 8, 1000)
        tool_s = min(300.0, random.lognormvariate(math.log(0.8), 1.856))
        segments.append(SegmentPlan(new, output, tool_s, "shell"))
    return _ended(segments)


def _tool_user(kind: str, of: _ToolUser, random: Random) -> list[SegmentPlan]:
    calls = 0
    while calls < 1:
        calls = round(random.gauss(of.calls_mean, of.calls_sd))
    growth = (
        of.calls_mean * (of.output_mean + of.answer_mean) / 2
    )  # the table's context is at the mean call, not the first
    first = max(0.3 * of.context_mean, of.context_mean - growth)
    segments = []
    for turn in range(calls + 1):
        if turn == 0:
            new = _tokens(random, first, min(0.8, of.context_sd / of.context_mean), 50, 6000)
        else:
            new = _tokens(random, of.answer_mean, 0.5, 2, 1_000_000)
        output = _tokens(random, of.output_mean, 0.6, 2, 500)
        tool_s = max(0.2 * of.tool_mean, random.gauss(of.tool_mean, of.tool_sd))
        segments.append(SegmentPlan(new, output, tool_s, kind))
    return _ended(segments)


def _research(id: str, arrival: float, random: Random) -> list[ProgramPlan]:
    """An agent that sends sub-agents out together, some rounds long, and calls several tools at once in between.

    Assumed: two to five sub-agents a round (44% of agentic coding sessions have any, according to vLLM's AgentX post),
    web tools as Continuum's BFCL web search (1.9 +- 2.1 s, arXiv 2511.02230), of parallel calls the longest counts.
    """
    rounds = random.randint(1, 3)
    segments, children = [], []
    for turn in range(rounds):
        names = []
        for _ in range(random.randint(2, 5)):
            names.append(f"{id}.{len(children)}")
            children.append(_researcher(names[-1], id, random))
        new = _tokens(random, 600, 0.5, 50, 4000) if turn == 0 else _tokens(random, 500, 0.5, 50, 4000)
        segments.append(SegmentPlan(new, _tokens(random, 180, 0.6, 16, 900), 0.0, "agents", tuple(names)))
        calls = random.randint(1, 4)  # at once
        new = len(names) * _tokens(random, 200, 0.5, 20, 1000)
        tool_s = max(_web_s(random) for _ in range(calls))
        segments.append(SegmentPlan(new, _tokens(random, 120, 0.6, 8, 900), tool_s, "web"))
    segments.append(SegmentPlan(_tokens(random, 400, 0.5, 20, 2000), _tokens(random, 500, 0.5, 50, 1000), 0.0, None))
    parent = ProgramPlan(id, "research", arrival, 1024, tuple(segments), (Shared("research", 1500),))
    return [parent, *children]


def _researcher(id: str, parent: str, random: Random) -> ProgramPlan:
    segments = []
    for turn in range(random.randint(2, 6)):
        new = _tokens(random, 200 if turn == 0 else 700, 0.6, 20, 4000)
        segments.append(SegmentPlan(new, _tokens(random, 90, 0.6, 8, 500), _web_s(random), "web"))
    prefix = (Shared("researcher", 1000),)
    return ProgramPlan(id, "researcher", 0.0, 512, tuple(_ended(segments)), prefix, parent)


def _web_s(random: Random) -> float:
    return min(60.0, random.lognormvariate(math.log(1.29), 0.9))


def _ended(segments: list[SegmentPlan]) -> list[SegmentPlan]:
    return [*segments[:-1], segments[-1]._replace(tool_s=0.0, tool=None)]


def _tokens(random: Random, mean: float, sigma: float, least: int, most: int) -> int:
    """A lognormal count with this mean, cut to [least, most]."""
    return max(least, min(most, int(random.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))))
