"""Who arrives when, and how long its tools take: the part of a fleet that a seed decides."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from astraea_sglang.errors import ConfigError
from astraea_sglang.fleet.bfcl import Task

# Tool seconds by class: mean, standard deviation (InferCept, arXiv 2402.01869, table 1).
TOOL_SECONDS = {
    "math": (9e-5, 6e-5),
    "qa": (0.69, 0.17),
    "ve": (0.09, 0.014),
    "chatbot": (28.6, 15.6),
    "image": (20.03, 7.8),
    "tts": (17.24, 7.6),
}


@dataclass(frozen=True, slots=True)
class PlannedProgram:
    """Which task arrives when (second of the run), and how long does each of its tool calls take (seconds)?"""

    id: str
    task: Task
    arrival: float
    tool_class: str
    tool_seconds: tuple[float, ...]


def make_plan(tasks: Sequence[Task], *, programs: int, seed: int, gap_s: float, factor: float) -> list[PlannedProgram]:
    """Which programs make up the fleet? Equal arguments, equal plan; `programs` different tasks in arrival order.

    Arrivals are Poisson with a mean gap of `gap_s` seconds, the first at 0. Each program gets one class of
    TOOL_SECONDS; its latencies are lognormal with that class's mean and deviation, times `factor`.
    Raises ConfigError when there are not that many tasks.
    """
    if not 1 <= programs <= len(tasks):
        raise ConfigError(
            f"{programs} programs asked, {len(tasks)} tasks there; type --programs N with N in 1..{len(tasks)}"
        )
    rng = random.Random(seed)
    plan: list[PlannedProgram] = []
    arrival = 0.0
    for task in rng.sample(tasks, programs):
        tool_class = rng.choice(sorted(TOOL_SECONDS))
        mean, deviation = TOOL_SECONDS[tool_class]
        sigma = math.sqrt(math.log1p((deviation / mean) ** 2))
        calls = sum(len(turn) for turn in task.calls)
        latencies = (rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma) * factor for _ in range(calls))
        plan.append(PlannedProgram(task.id, task, arrival, tool_class, tuple(latencies)))
        arrival += rng.expovariate(1 / gap_s)
    return plan
