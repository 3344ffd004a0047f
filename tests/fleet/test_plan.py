import math
import statistics

import pytest

from astraea_sglang.errors import ConfigError
from astraea_sglang.fleet.bfcl import Task
from astraea_sglang.fleet.plan import TOOL_SECONDS, PlannedProgram, make_plan

TASKS = [Task(f"t{i}", ("do it",), (("pwd()",) * 50,), (), {}) for i in range(300)]


def plan(programs: int = 300, seed: int = 1, gap_s: float = 2.0, factor: float = 1.0) -> list[PlannedProgram]:
    return make_plan(TASKS, programs=programs, seed=seed, gap_s=gap_s, factor=factor)


def test_the_same_seed_gives_the_same_fleet():
    assert plan(seed=5) == plan(seed=5)


def test_another_seed_gives_another_fleet():
    one, two = plan(20, seed=5), plan(20, seed=6)
    assert [p.id for p in one] != [p.id for p in two]
    assert [p.arrival for p in one] != [p.arrival for p in two]


def test_programs_are_different_tasks_in_arrival_order_from_second_zero():
    fleet = plan()
    assert len({p.id for p in fleet}) == 300
    assert fleet[0].arrival == 0
    assert [p.arrival for p in fleet] == sorted(p.arrival for p in fleet)


def test_arrivals_keep_the_mean_gap():
    arrivals = plan(gap_s=2.0)[-1].arrival
    assert arrivals / 299 == pytest.approx(2.0, rel=4 / math.sqrt(299))  # four standard errors of an exponential mean


@pytest.mark.parametrize("tool_class", TOOL_SECONDS)
def test_tool_latencies_have_the_moments_of_the_table(tool_class):
    mean, deviation = TOOL_SECONDS[tool_class]
    sample = [s for p in plan() if p.tool_class == tool_class for s in p.tool_seconds]
    assert len(sample) > 1000
    assert statistics.fmean(sample) == pytest.approx(mean, abs=4 * deviation / math.sqrt(len(sample)))
    assert statistics.stdev(sample) == pytest.approx(deviation, rel=0.15)


def test_the_factor_scales_every_latency_and_nothing_else():
    full, tenth = plan(), plan(factor=0.1)
    assert [p.arrival for p in tenth] == [p.arrival for p in full]
    assert tenth[3].tool_seconds == pytest.approx([s / 10 for s in full[3].tool_seconds])


@pytest.mark.parametrize("programs", [0, 301])
def test_more_programs_than_tasks_are_refused_with_the_limit(programs):
    with pytest.raises(ConfigError, match=r"--programs N with N in 1\.\.300"):
        plan(programs)
