"""The replay lab against a real server: lengths to the token, real prefix hits, constants of the real device."""

import asyncio
from dataclasses import fields, replace

import pytest

from astraea_sglang.bench.bfcl import live_bfcl
from astraea_sglang.bench.calibrate import calibrate
from astraea_sglang.bench.device import Device
from astraea_sglang.bench.figures import SegmentRun
from astraea_sglang.bench.live import replay
from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan, Shared
from astraea_sglang.errors import ConfigError

pytestmark = pytest.mark.server
STEPS = (SegmentPlan(30, 9, 0.05, "t"), SegmentPlan(12, 1, 0.0, "t"), SegmentPlan(8, 17, 0.0, None, kept=40))


def plan(id: str, *segments: SegmentPlan, **about) -> ProgramPlan:
    return ProgramPlan(id, "lab", about.pop("at", 0.0), 64, segments or STEPS, **about)


def play(url: str, *plans: ProgramPlan, **options) -> tuple[list[SegmentRun], list[str]]:
    notes: list[str] = []
    return asyncio.run(replay(plans, url, note=notes.append, **options)), notes


def lengths(plans: list[ProgramPlan]) -> dict[tuple[str, int], tuple[int, int]]:
    """(prompt, output) of every segment, as planned."""
    return {
        (plan.id, i): (prompt, plan.segments[i].output) for plan in plans for i, prompt in enumerate(plan.prompts())
    }


@pytest.mark.parametrize("api", ["sglang", "openai"])
def test_a_program_alone_finds_in_the_cache_all_that_it_computed(server_url, api):
    alone = plan(f"alone-{api}", prefix=(Shared(f"system-{api}", 25),))
    runs, notes = play(server_url, alone, api=api)
    assert {(run.program, run.segment): (run.prompt, run.output) for run in runs} == lengths([alone])
    assert [run.known for run in runs] == [0, 55 + 9 - 1, 40] == [run.cached for run in runs]
    assert [run.computed for run in runs] == [55, 13, 8]
    assert all(run.arrived <= run.started <= run.finished for run in runs)
    assert runs[1].arrived == pytest.approx(runs[0].finished + 0.05)
    told = [note for note in notes if "told each output's length" in note]
    assert bool(told) == (api == "openai")  # its only way to force a length


def test_programs_side_by_side_share_a_beginning_and_keep_their_lengths(server_url):
    begin = (Shared("side by side", 60),)
    parent = plan("parent", SegmentPlan(20, 30, 0.0, "t", spawns=("child-0", "child-1")), SegmentPlan(5, 3, 0.0, None))
    others = [plan(f"side-{i}", at=0.1 * i, prefix=begin) for i in range(4)]
    plans = [parent, *others, *(plan(f"child-{i}", prefix=begin, parent="parent") for i in range(2))]
    seen: list[int] = []
    runs, _ = play(server_url, *plans, watch=lambda seconds, done: seen.append(done))
    assert {(run.program, run.segment): (run.prompt, run.output) for run in runs} == lengths(plans)
    by = {(run.program, run.segment): run for run in runs}
    assert by["parent", 1].arrived == max(by["child-0", 2].finished, by["child-1", 2].finished)
    assert by["side-3", 0].known == 60 == by["side-3", 0].cached  # it queued until others had computed that
    assert seen[-1] == 5 and seen == sorted(seen)


def test_a_prompt_beyond_the_context_is_refused_with_the_servers_own_limit(server_url):
    with pytest.raises(ConfigError, match=r"program long, segment 0: 8190 prompt tokens .* context of 8192 tokens"):
        play(server_url, plan("long", SegmentPlan(8190, 1, 0.0, None)))


def test_real_tasks_come_back_as_plans_and_runs(server_url):
    plans, runs = live_bfcl(server_url, programs=2, seed=3, gap_s=0.1, factor=0.001, most_calls=2)
    assert {(run.program, run.segment): (run.prompt, run.output) for run in runs} == lengths(plans)
    assert all(0 < run.cached == run.known for run in runs if run.segment)  # the pool holds both
    assert {plan.id for plan in plans} == {run.program for run in runs} and len(plans) == 2
    assert all(plan.segments[-1].tool is None for plan in plans)


def test_a_real_device_is_calibrated_in_seconds(server_url):
    found = calibrate(server_url, name="here", budget_s=25)
    value = {name: entry["value"] for name, entry in found["constants"].items()}
    device = Device(**value)
    assert set(value) == {field.name for field in fields(Device)} and value["chunk_tokens"] > 0
    assert 1e-4 < device.step_s + device.row_s < 5 and 1e-6 < device.prefill_token_s + device.attention_s < 1
    assert all(0 <= each < 10**6 for each in value.values()) and found["residuals"]["worst"] < 5
    assert "SmolLM2" in found["about"] and "cpu" in found["about"]
    assert device.segment(256, 0, 20) > replace(device, step_s=device.step_s / 2).segment(256, 0, 20)
