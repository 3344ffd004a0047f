"""Which programs arrive when, and what do they do? Pure plans of agent programs: equal arguments, equal plan.

Token counts and seconds come from distributions with a source each; nothing here knows an engine.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from astraea_sglang.errors import ConfigError


class SegmentPlan(NamedTuple):
    """One generation, and the tool call after it: a program's last segment calls none, for 0 s."""

    new_prompt: int  # tokens that follow what the program has seen: the user's words or the tool's answer
    output: int  # tokens generated
    tool_s: float
    tool: str | None


@dataclass(frozen=True, slots=True)
class ProgramPlan:
    """One program: when it arrives (seconds from the start), what it shares with its class, its segments in order."""

    id: str
    program_class: str
    arrival_s: float
    shared_prefix: int  # tokens of a system prompt that every program of the class begins with
    max_new_tokens: int  # what its requests declare: the longest output allowed
    segments: tuple[SegmentPlan, ...]

    @property
    def tool_s(self) -> float:
        """How many seconds do its tools take in all?"""
        return sum(segment.tool_s for segment in self.segments)

    def prompts(self) -> Iterator[int]:
        """How long is the prompt of each segment, in tokens? All that came before and what is new."""
        tokens = self.shared_prefix
        for segment in self.segments:
            tokens += segment.new_prompt
            yield tokens
            tokens += segment.output


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

# Knees are estimates for device h200-llama3.1-8b and SGLang 0.5.23: infercept lies between 1.7 and 2.0 in replays of
# fcfs with 1000 programs, coding and mixed come from a simulation of the same engine. None was found by bisection yet.
WORKLOADS = {
    "infercept": Workload({name: 1 / 6 for name in INFERCEPT}, 1000, 60_000, 64, 1.85),
    "coding": Workload({"coding": 1.0}, 150, 150_000, 96, 0.08),
    "mixed": Workload({name: 1 / 12 for name in INFERCEPT} | {"coding": 0.1, "oneshot": 0.4}, 400, 150_000, 96, 1.0),
}


def workload(name: str) -> Workload:
    """The workload called `name`. Raises ConfigError, which lists those there are."""
    if name not in WORKLOADS:
        raise ConfigError(f"--workload {name} is unknown; choose one of: {', '.join(sorted(WORKLOADS))}")
    return WORKLOADS[name]


def plan(name: str, *, load: float, programs: int, seed: int) -> list[ProgramPlan]:
    """Which programs arrive at `load` times the workload's knee? In the order of their Poisson arrivals.

    With one seed the programs are the same at every load; only their arrivals move together or apart.
    """
    chosen = workload(name)
    arrivals, bodies = Random(f"arrivals {seed}"), Random(f"programs {seed}")
    arrival, plans = 0.0, []
    for number in range(programs):
        arrival += arrivals.expovariate(1.0) / (load * chosen.knee)
        (kind,) = bodies.choices(list(chosen.mix), list(chosen.mix.values()))
        shared, longest, segments = _body(kind, bodies)
        plans.append(ProgramPlan(f"p{number:05}", kind, arrival, shared, longest, tuple(segments)))
    return plans


def _body(kind: str, random: Random) -> tuple[int, int, list[SegmentPlan]]:
    if kind == "coding":
        return 4000, 1024, _coding(random)
    if kind == "oneshot":
        return (
            0,
            1024,
            [SegmentPlan(_tokens(random, 500, 1.0, 16, 8000), _tokens(random, 250, 0.8, 4, 1000), 0.0, None)],
        )
    return 0, 512, _tool_user(kind, INFERCEPT[kind], random)


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


def _ended(segments: list[SegmentPlan]) -> list[SegmentPlan]:
    return [*segments[:-1], segments[-1]._replace(tool_s=0.0, tool=None)]


def _tokens(random: Random, mean: float, sigma: float, least: int, most: int) -> int:
    """A lognormal count with this mean, cut to [least, most]."""
    return max(least, min(most, int(random.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))))
