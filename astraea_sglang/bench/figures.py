"""What does a finished run amount to? One flat record of numbers, the same for every policy."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from astraea_sglang.bench.device import Device
from astraea_sglang.bench.workloads import ProgramPlan
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
    mixed_chunk: bool

    @property
    def name(self) -> str:
        """Under which file name is it kept?"""
        policy = "".join(c if c.isalnum() or c in "-=._" else "+" for c in self.policy)
        mixed = "-mixedchunk" if self.mixed_chunk else ""
        return f"{self.workload}-{self.load:g}-{policy}-s{self.seed}-n{self.programs}-{self.device}{mixed}"


class SegmentRun(NamedTuple):
    """How one segment went: seconds since the start, tokens as the device counted them."""

    program: str
    segment: int  # from 0
    arrived: float
    finished: float
    prompt: int
    output: int
    known: int  # tokens of the prompt that had been computed before, by the program or as its class's system prompt
    cached: int  # of those, found in the radix tree when the segment started
    computed: int  # prompt tokens computed; again after a retraction, too


def figures(plans: Sequence[ProgramPlan], segments: Sequence[SegmentRun], device: Device) -> dict[str, Any]:
    """What are the run's numbers? Seconds and tokens; `programs` holds one row per program for plots.

    engine = JCT - tools; slowdown = engine / the same program's engine time alone, its class's system prompt resident;
    jain = Jain's index of slowdowns, 1 when all are slowed alike; recomputed_tokens = prompt tokens computed although
    they had been before, per program; return_hit_rate = of the tokens a returning segment had had computed, the share
    that was still in the radix tree; finish_sha256 is over every segment's finish time.
    """
    finished = {segment.program: segment.finished for segment in segments}  # the last one of each program stays
    jct = [finished[plan.id] - plan.arrival_s for plan in plans]
    engine = [total - plan.tool_s for total, plan in zip(jct, plans, strict=True)]
    slowdown = [e / device.unloaded(plan, plan.shared_prefix) for e, plan in zip(engine, plans, strict=True)]
    returning = [segment for segment in segments if segment.segment]
    return {
        "jct_mean": fmean(jct),
        "jct_p50": percentile(jct, 50),
        "jct_p95": percentile(jct, 95),
        "jct_p99": percentile(jct, 99),
        "engine_mean": fmean(engine),
        "engine_p95": percentile(engine, 95),
        "slowdown_mean": fmean(slowdown),
        "slowdown_max": max(slowdown),
        "jain": sum(slowdown) ** 2 / (len(slowdown) * sum(s * s for s in slowdown)),
        "recomputed_tokens": sum(s.computed - (s.prompt - s.known) for s in segments) / len(plans),
        "return_hit_rate": sum(s.cached for s in returning) / max(1, sum(s.known for s in returning)),
        "finish_sha256": finish_hash(segments),
        "per_program": [
            {"id": plan.id, "class": plan.program_class, "jct": j, "engine": e, "slowdown": s}
            for plan, j, e, s in zip(plans, jct, engine, slowdown, strict=True)
        ],
    }


def finish_hash(segments: Sequence[SegmentRun]) -> str:
    """Did two runs go the same way? SHA-256 over (program, segment, finish time to the last bit) of every segment."""
    lines = sorted(f"{s.program} {s.segment} {s.finished.hex()}\n" for s in segments)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
