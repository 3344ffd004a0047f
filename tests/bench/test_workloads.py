from collections import Counter
from itertools import pairwise
from statistics import fmean, median, stdev

import pytest

from astraea_sglang.bench import traces
from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan, Shared, families
from astraea_sglang.bench.workloads import INFERCEPT, WORKLOADS, concurrency, plan, workload
from astraea_sglang.errors import ConfigError

SEGMENTS = (SegmentPlan(5, 3, 1.5, "t"), SegmentPlan(7, 2, 0.0, None))


DRAWN = [name for name in WORKLOADS if name not in ("bfcl", "forks")]


def plans(name: str, programs: int = 50, load: float = 1.0, seed: int = 1) -> list[ProgramPlan]:
    return plan(name, load=load, programs=programs, seed=seed)


@pytest.mark.parametrize("name", DRAWN)
def test_equal_seeds_give_equal_plans_and_others_do_not(name):
    assert plans(name) == plans(name)
    assert plans(name) != plans(name, seed=2)


def test_load_moves_arrivals_only():
    slow, fast = plans("mixed", load=0.5), plans("mixed", load=2.0)
    assert [p.segments for p in slow] == [p.segments for p in fast]
    assert [p.arrival_s / 4 for p in slow] == pytest.approx([p.arrival_s for p in fast])


def test_a_longer_plan_begins_with_the_shorter_one():
    assert plans("infercept", programs=80)[:50] == plans("infercept", programs=50)


@pytest.mark.parametrize("name", DRAWN)
def test_arrivals_come_at_the_knee_on_average(name):
    assert plans(name, 4000)[-1].arrival_s == pytest.approx(4000 / WORKLOADS[name].knee, rel=0.05)


def test_a_prompt_is_all_that_came_before_and_what_is_new():
    chain = ProgramPlan("p", "c", 0.0, 512, SEGMENTS, (Shared("c", 10),))
    assert list(chain.prompts()) == [15, 15 + 3 + 7]
    assert chain.tool_s == 1.5


@pytest.mark.parametrize("name", DRAWN)
def test_every_segment_but_the_last_calls_a_tool_and_fits_what_it_declares(name):
    for program in plans(name, 200):
        *calling, last = program.segments
        assert all(segment.tool and segment.tool_s > 0 for segment in calling)
        assert last.tool is None and last.tool_s == 0
        assert all(1 <= s.output <= program.max_new_tokens and s.new_prompt >= 1 for s in program.segments)
        assert max(program.prompts()) + program.max_new_tokens < WORKLOADS[name].pool_tokens


def test_infercept_classes_have_the_calls_and_tool_times_of_its_table():
    many = plans("infercept", 6000)
    for name, wanted in INFERCEPT.items():
        calls = [len(p.segments) - 1 for p in many if p.program_class == name]
        tools = [s.tool_s for p in many if p.program_class == name for s in p.segments[:-1]]
        assert len(calls) == pytest.approx(1000, rel=0.1)
        assert fmean(tools) == pytest.approx(wanted.tool_mean, rel=0.1)
        assert fmean(calls) == pytest.approx(wanted.calls_mean, rel=0.2)  # a program calls at least once


def test_coding_programs_are_long_with_heavy_tailed_tools():
    many = plans("coding", 300)
    tools = [s.tool_s for p in many for s in p.segments[:-1]]
    assert all(10 <= len(p.segments) <= 60 and p.shared_prefix == 4000 for p in many)
    assert median(tools) == pytest.approx(0.8, rel=0.1)
    assert max(tools) > 60 and max(tools) <= 300


def test_mixed_is_two_fifths_one_shot_chats():
    shares = Counter(p.program_class for p in plans("mixed", 4000))
    assert shares["oneshot"] == pytest.approx(1600, rel=0.1)
    assert shares["coding"] == pytest.approx(400, rel=0.2)


def test_an_unknown_workload_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"--workload chess is unknown; .*: bfcl, coding, .*, or trace:FILE"):
        workload("chess")


def test_sub_agents_are_spawned_by_their_parents_and_waited_for():
    many = plans("forks", 40)
    assert many == plans("forks", 40) != plans("forks", 40, seed=2)
    for parent, *children in families(many):
        assert parent.program_class == "research"
        spawned = [name for segment in parent.segments for name in segment.spawns]
        assert spawned == [child.id for child in children] and len(spawned) >= 2
        assert {child.parent for child in children} == {parent.id}
        assert not parent.segments[-1].spawns


def test_bursts_have_the_variation_asked_for_and_the_same_mean_gap():
    at = [p.arrival_s for p in plan("infercept", load=1.0, programs=6000, seed=1, arrivals="gamma:3")]
    gaps = [later - earlier for earlier, later in pairwise([0.0, *at])]
    assert fmean(gaps) == pytest.approx(1 / WORKLOADS["infercept"].knee, rel=0.15)
    assert stdev(gaps) / fmean(gaps) == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize(("arrivals", "alive"), [("closed:24", 24), ("poisson", None), ("gamma:2.5", None)])
def test_only_a_closed_loop_says_how_many_are_alive(arrivals, alive):
    assert concurrency(arrivals) == alive


def test_a_trace_is_a_workload_whose_load_is_its_speed(tmp_path):
    recorded = [p for p in plans("infercept", 12) if len(p.segments) > 1][:5]
    traces.write(recorded, tmp_path / "fleet.csv", "tracelab")
    name = f"trace:{tmp_path / 'fleet.csv'}"
    assert workload(name).programs == 5
    once, twice = (plan(name, load=load, programs=5, seed=1) for load in (1.0, 2.0))
    assert once[0].arrival_s == 0
    assert [p.arrival_s / 2 for p in once] == pytest.approx([p.arrival_s for p in twice])
    assert [p.segments for p in once] == [p.segments for p in twice]
    assert len(plan(name, load=1.0, programs=3, seed=1)) == 3
