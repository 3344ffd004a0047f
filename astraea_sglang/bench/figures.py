"""What does a finished run amount to? One flat record of numbers, the same for every policy."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from astraea_sglang.bench.device import Device
from astraea_sglang.bench.plans import ProgramPlan, busy, families
from astraea_sglang.fleet.report import percentile


@dataclass(frozen=True, slots=True)
class Spec:
    """Which run? Everything that decides its outcome; equal specs, equal figures but for `wall_s`."""

    workload: str
    load: float  # multiples of the workload's knee
    policy: str
    seed: int
    programs: int
    device: str
    mixed_chunk: bool = False
    overlap: bool = False
    arrivals: str = "poisson"
    pool_tokens: int = 0  # 0: the workload's own
    max_running: int = 0

    @property
    def name(self) -> str:
        """Under which file name is it kept?"""
        policy = "".join(c if c.isalnum() or c in "-=._" else "+" for c in self.policy)
        given = (
            ("mixedchunk", self.mixed_chunk),
            ("overlap", self.overlap),
            (self.arrivals.replace(":", ""), self.arrivals != "poisson"),
            (f"pool{self.pool_tokens}", self.pool_tokens),
            (f"batch{self.max_running}", self.max_running),
        )
        rest = "".join(f"-{word}" for word, said in given if said)
        workload, device = (Path(name).name for name in (self.workload, self.device))
        return f"{workload}-{self.load:g}-{policy}-s{self.seed}-n{self.programs}-{device}{rest}"


class SegmentRun(NamedTuple):
    """How one segment went: seconds since the start, tokens as the device counted them."""

    program: str
    segment: int  # from 0
    arrived: float
    started: float  # when its first pass began
    finished: float
    prompt: int
    output: int
    known: int  # tokens of the prompt that had been computed before, by the program or as its class's system prompt
    cached: int  # of those, found in the radix tree when the segment started
    computed: int  # prompt tokens computed; again after a retraction, too


class Samples:
    """Rows over time, at most `most` of them: when they are too many, every second one is dropped."""

    def __init__(self, most: int = 1024) -> None:
        self.rows: list[tuple[float, ...]] = []
        self._most, self._every, self._next = most, 0.05, 0.0

    def due(self, seconds: float) -> bool:
        """Is it time for another row?"""
        return seconds >= self._next

    def add(self, seconds: float, *values: float) -> None:
        """Keep a row."""
        self.rows.append((round(seconds, 3), *values))
        self._next = seconds + self._every
        if len(self.rows) > self._most:
            del self.rows[1::2]
            self._every *= 2


def figures(plans: Sequence[ProgramPlan], segments: Sequence[SegmentRun], device: Device) -> dict[str, Any]:
    """What are the run's numbers? Seconds and tokens; `per_program` and `segments` hold what plots need.

    A program's child sessions are part of it. engine = JCT less the time in which it had nothing in the engine, its
    tools; slowdown = engine / the same program's engine time alone, its class's system prompt resident; jain = Jain's
    index of slowdowns, 1 when all are slowed alike; throughput = programs a second that ended while others still
    arrived; queue = from a segment's arrival to its first pass; recomputed_tokens = prompt tokens computed although
    they had been before, per program; return_hit_rate = of the tokens a returning segment had had computed, the share
    that was still in the radix tree; finish_sha256 is over every segment's finish time.
    """
    runs: dict[str, list[SegmentRun]] = {}
    for segment in segments:
        runs.setdefault(segment.program, []).append(segment)
    programs = []
    for family in families(plans):
        went = [segment for plan in family for segment in runs[plan.id]]
        arrived, ended = runs[family[0].id][0].arrived, max(segment.finished for segment in went)
        engine = busy([(segment.arrived, segment.finished) for segment in went])
        slowdown = engine / device.alone(family)
        programs.append(
            {
                "id": family[0].id,
                "class": family[0].program_class,
                "arrived": arrived,
                "jct": ended - arrived,
                "engine": engine,
                "slowdown": slowdown,
            }
        )
    jct, engine, slowdown = ([program[key] for program in programs] for key in ("jct", "engine", "slowdown"))
    queue = [segment.started - segment.arrived for segment in segments]
    returning = [segment for segment in segments if segment.segment]
    last = max(program["arrived"] for program in programs)
    return {
        "jct_mean": fmean(jct),
        "jct_p50": percentile(jct, 50),
        "jct_p95": percentile(jct, 95),
        "jct_p99": percentile(jct, 99),
        "engine_mean": fmean(engine),
        "engine_p95": percentile(engine, 95),
        "engine_p99": percentile(engine, 99),
        "slowdown_mean": fmean(slowdown),
        "slowdown_max": max(slowdown),
        "jain": sum(slowdown) ** 2 / (len(slowdown) * sum(s * s for s in slowdown)),
        "throughput": sum(p["arrived"] + p["jct"] <= last for p in programs) / last if last else 0.0,
        "queue_mean": fmean(queue),
        "queue_p95": percentile(queue, 95),
        "recomputed_tokens": sum(s.computed - (s.prompt - s.known) for s in segments) / len(programs),
        "return_hit_rate": sum(s.cached for s in returning) / max(1, sum(s.known for s in returning)),
        "finish_sha256": finish_hash(segments),
        "per_program": programs,
        "segments": {
            id: [[round(s.arrived, 3), round(s.started, 3), round(s.finished, 3)] for s in went]
            for id, went in runs.items()
        },
    }


def alone(plans: Sequence[ProgramPlan], device: Device) -> list[SegmentRun]:
    """How would every program go that is alone on the engine? The bound that no policy can pass."""
    found = []
    for family in families(plans):
        for plan, index, begun, ended in device.schedule(family):
            prompt, output = list(plan.prompts())[index], plan.segments[index].output
            arrived = family[0].arrival_s + begun
            known = prompt - plan.segments[index].new_prompt - (index > 0)
            times = arrived, arrived, family[0].arrival_s + ended
            found.append(SegmentRun(plan.id, index, *times, prompt, output, known, known, prompt - known))
    return found


def finish_hash(segments: Sequence[SegmentRun]) -> str:
    """Did two runs go the same way? SHA-256 over (program, segment, finish time to the last bit) of every segment."""
    lines = sorted(f"{s.program} {s.segment} {s.finished.hex()}\n" for s in segments)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
