"""What do runs amount to, and how sure is that? Seeds pooled, ratios with intervals, capacity."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from astraea_sglang.fleet.report import percentile

Result = dict[str, Any]

BASE, BOUND = "fcfs", "unloaded"  # what all is compared with; the policy that is no policy: every program alone
LIMIT = 3.0  # mean engine slowdown up to which a load counts as carried
# Runs that differ in one of these are not compared: they are other programs, or another engine.
CONDITIONS = (
    "workload", "load", "arrivals", "programs", "device", "mixed_chunk", "overlap", "pool_tokens", "max_running",
)  # fmt: skip
TIMES = ("jct", "engine", "slowdown")  # what a row of `per_program` tells of its program
PERCENTILES = (("jct", 50), ("jct", 95), ("jct", 99), ("engine", 95), ("engine", 99))
BY_SEED = (
    "jain", "throughput", "recomputed_tokens", "return_hit_rate", "queue_mean", "queue_p95", "emulated_s", "wall_s",
)  # fmt: skip
FIGURES = (
    *(f"{name}_mean" for name in TIMES),
    *(f"{name}_p{p}" for name, p in PERCENTILES),
    "slowdown_max",
    *BY_SEED,
)


class Ratio(NamedTuple):
    """How does a policy's mean compare with another's? `low` to `high` is the 95% interval, NaN of a single seed."""

    value: float
    low: float
    high: float


class Bounds(NamedTuple):
    """A number of which only bounds may be known: >1.6 is 1.6 to infinity, <0.7 is 0 to 0.7."""

    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:.2f}"
        if not self.low:
            return "?" if math.isinf(self.high) else f"<{self.high:.2f}"
        return f">{self.low:.2f}" if math.isinf(self.high) else f"{self.low:.2f} to {self.high:.2f}"


@dataclass(frozen=True, slots=True)
class Line:
    """What became of the programs under one policy; `ratios` and `intervals` to BASE are empty where it did not run."""

    policy: str
    seeds: tuple[int, ...]
    figures: dict[str, float]
    ratios: dict[str, float]
    intervals: dict[str, Ratio]  # of jct_mean and engine_mean


def by_policy(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Which runs belong to each policy? Policies in the order of their first run."""
    return _grouped(results, lambda result: result["policy"])


def scenarios(results: Iterable[Result]) -> list[list[Result]]:
    """Which runs met the same CONDITIONS, and so can be compared? In the order of their first run."""
    return list(_grouped(results, lambda result: tuple(result.get(key) for key in CONDITIONS)).values())


def sweeps(results: Iterable[Result]) -> list[dict[float, list[Result]]]:
    """Which runs differ in nothing but the load? Each by load, the lowest first; one load alone is no sweep."""
    apart = [key for key in CONDITIONS if key != "load"]
    groups = _grouped(results, lambda result: tuple(result.get(key) for key in apart)).values()
    by_load = [dict(sorted(_grouped(group, lambda result: result["load"]).items())) for group in groups]
    return [loads for loads in by_load if len(loads) > 1]


def pooled(runs: Sequence[Result]) -> dict[str, float]:
    """What are a policy's FIGURES over all seeds? NaN where no run tells.

    Means and percentiles (nearest rank) are over the programs of all seeds together if every run has them, else means
    of the seeds' own; `slowdown_max` is the worst of any seed; BY_SEED are means of the seeds, of whose difference
    they should know nothing (Jain's index is about programs that met).
    """
    figures = {key: _mean(_numbers(runs, key)) for key in FIGURES}
    figures["slowdown_max"] = max(_numbers(runs, "slowdown_max"), default=math.nan)
    if runs and all(run.get("per_program") for run in runs):
        of = {name: [row[name] for run in runs for row in run["per_program"] if name in row] for name in TIMES}
        figures |= {f"{name}_mean": fmean(values) for name, values in of.items() if values}
        figures |= {f"{name}_p{p}": percentile(of[name], p) for name, p in PERCENTILES if of[name]}
    return figures


def jain(slowdowns: Sequence[float]) -> float:
    """Are all slowed alike? Jain's index: 1 if so, 1/n when one of n bears it all; NaN of none."""
    squares = sum(value * value for value in slowdowns)
    return sum(slowdowns) ** 2 / (len(slowdowns) * squares) if squares else math.nan


def ratio(runs: Sequence[Result], base: Sequence[Result], name: str) -> Ratio | None:
    """How does the mean `name` (one of TIMES) compare with that under `base`? None if they share no seed.

    Paired: the same programs of the same seeds, whose arrivals are the same, summed on both sides. The interval is the
    classic one of a ratio estimator with seeds as its sample: programs of a seed wait for each other, so they are one
    observation and not hundreds. Its error comes from the seeds' distances to the pooled ratio, taken on a log scale,
    with Student's t on seeds - 1 degrees. Bootstraps are not used because they flatter: of made-up experiments with
    three seeds this interval holds the true ratio in 93%, one bootstrapped over seeds in 73%, over seeds and programs
    in 78%, over programs in 45%.
    """
    sums = [pair for seed, run in _seeds(base).items() if (pair := _sums(run, _seeds(runs).get(seed), name))]
    over, under = (sum(side) for side in zip(*sums, strict=True)) if sums else (0.0, 0.0)
    if not under:
        return None
    value, seeds = over / under, len(sums)
    if seeds < 2 or not value:
        return Ratio(value, math.nan, math.nan)
    from scipy.special import stdtrit  # only here: reports are read where no SGLang, which brings scipy, is installed

    squares = sum((above - value * below) ** 2 for above, below in sums)
    error = math.sqrt(squares * seeds / (seeds - 1)) / over
    factor = math.exp(float(stdtrit(seeds - 1, 0.975)) * error)
    return Ratio(value, value / factor, value * factor)


def compare(results: Sequence[Result]) -> list[Line]:
    """How did the policies of one scenario do, each against BASE over the seeds that both have?"""
    policies = by_policy(results)
    base = policies.get(BASE, [])
    return [_line(policy, runs, base) for policy, runs in policies.items()]


def capacity(by_load: Mapping[float, Sequence[Result]], limit: float = LIMIT) -> Bounds | None:
    """Up to which load does the mean engine slowdown stay within `limit`? One policy's runs, seeds pooled.

    Between the last load within and the first beyond, the logarithm of the slowdown is taken to be a line. Above the
    highest load measured, or below the lowest, only that is known. None if no run tells its slowdown.
    """
    points = [(load, pooled(runs)["slowdown_mean"]) for load, runs in sorted(by_load.items())]
    points = [(load, slowdown) for load, slowdown in points if not math.isnan(slowdown)]
    if not points:
        return None
    beyond = next((n for n, (_, slowdown) in enumerate(points) if slowdown > limit), None)
    if beyond is None:
        return Bounds(points[-1][0], math.inf)
    if not beyond:
        return Bounds(0.0, points[0][0])
    (low, below), (high, above) = points[beyond - 1], points[beyond]
    load = low + (high - low) * math.log(limit / below) / math.log(above / below)
    return Bounds(load, load)


def capacities(sweep: Mapping[float, Sequence[Result]]) -> dict[str, tuple[Bounds, Bounds | None]]:
    """What load does each policy carry, and how many times BASE's own? `sweep` is one of sweeps(); BOUND has none."""
    policies = by_policy(result for runs in sweep.values() for result in runs)
    by_load = {policy: _grouped(runs, lambda result: result["load"]) for policy, runs in policies.items()}
    found = {policy: seen for policy, runs in by_load.items() if policy != BOUND and (seen := capacity(runs))}
    base = found.get(BASE)
    return {policy: (seen, _quotient(seen, base) if base else None) for policy, seen in found.items()}


def _quotient(over: Bounds, under: Bounds) -> Bounds:
    low = over.low / under.high if math.isfinite(under.high) else 0.0
    return Bounds(low, over.high / under.low if under.low else math.inf)


def _line(policy: str, runs: Sequence[Result], base: Sequence[Result]) -> Line:
    mine, theirs = _seeds(runs), _seeds(base)
    shared = [seed for seed in mine if seed in theirs]
    over, under = pooled([mine[seed] for seed in shared]), pooled([theirs[seed] for seed in shared])
    ratios = {key: over[key] / under[key] for key in FIGURES if under[key] > 0 and not math.isnan(over[key])}
    intervals = {f"{name}_mean": found for name in ("jct", "engine") if (found := ratio(runs, base, name))}
    ratios |= {key: found.value for key, found in intervals.items()}
    return Line(policy, tuple(sorted(mine)), pooled(runs), ratios, intervals)


def _sums(base: Result, run: Result | None, name: str) -> tuple[float, float] | None:
    """The sums of `name` over the programs that both runs have, the run's first; without programs, of the mean."""
    if run is None:
        return None
    mine, theirs = ({row["id"]: row[name] for row in of.get("per_program") or () if name in row} for of in (run, base))
    if shared := [id for id in theirs if id in mine]:
        return sum(mine[id] for id in shared), sum(theirs[id] for id in shared)
    means = _numbers([run, base], f"{name}_mean")
    return (means[0], means[1]) if len(means) == 2 else None


def _seeds(runs: Iterable[Result]) -> dict[int, Result]:
    return {run["seed"]: run for run in runs}


def _numbers(runs: Iterable[Result], key: str) -> list[float]:
    values = (run.get(key) for run in runs)
    return [float(value) for value in values if value is not None and not math.isnan(value)]


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _grouped(results: Iterable[Result], key: Any) -> dict[Any, list[Result]]:
    groups: dict[Any, list[Result]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups
