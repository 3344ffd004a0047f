import json

import pytest

from astraea_sglang.bench.device import FOLDER, Device, load, names
from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan, Shared
from astraea_sglang.bench.workloads import plan
from astraea_sglang.errors import ConfigError

H200 = load("h200-llama3.1-8b")
SEGMENTS = (SegmentPlan(50, 30, 9.0, "t"), SegmentPlan(20, 10, 0.0, None))


def stepped(device: Device, prompt: int, cached: int, output: int) -> float:
    """A segment alone, pass by pass."""
    seconds = 0.0
    while cached < prompt:
        tokens = min(device.chunk_tokens, prompt - cached)
        cached += tokens
        seconds += device.step([(tokens, cached)], rows=0, kv_tokens=0)
    return seconds + sum(device.step([], 1, prompt + made) for made in range(1, output))


def test_a_pass_costs_its_fixed_part_its_rows_and_its_prompt_tokens():
    device = Device(1.0, 0.1, 0.01, 0.5, 0.25, 4096)
    assert device.step([], rows=2, kv_tokens=30) == pytest.approx(1.0 + 0.2 + 0.3)
    # 4 tokens after 6 others attend to 6.5, 7.5, 8.5 and 9.5 tokens with half of themselves
    assert device.step([(4, 10)], rows=0, kv_tokens=0) == pytest.approx(1.0 + 4 * 0.5 + 0.25 * 32)


@pytest.mark.parametrize(("prompt", "cached", "output"), [(1, 0, 1), (300, 0, 20), (9000, 0, 5), (9000, 808, 2)])
def test_the_closed_form_of_a_segment_is_the_sum_of_its_passes(prompt, cached, output):
    assert H200.segment(prompt, cached, output) == pytest.approx(stepped(H200, prompt, cached, output), rel=1e-12)


def test_an_unloaded_program_finds_all_but_the_last_token_of_what_it_has_seen():
    chain = ProgramPlan("p", "c", 0.0, 512, SEGMENTS, (Shared("c", 100),))
    wanted = H200.segment(150, 100, 30) + H200.segment(200, 179, 10)
    assert H200.alone([chain]) == pytest.approx(wanted, rel=1e-12)
    assert H200.alone([chain], resident=0) > wanted


def test_unloaded_infercept_programs_spend_a_few_seconds_in_the_engine():
    programs = plan("infercept", load=1.0, programs=500, seed=1)
    mean = sum(H200.alone([p]) for p in programs) / len(programs)
    assert 3 < mean < 6


@pytest.mark.parametrize("name", names())
def test_every_number_of_a_device_has_a_source(name):
    data = json.loads((FOLDER / f"{name}.json").read_text())
    assert data["name"] == name
    assert all(constant["source"] and constant["value"] > 0 for constant in data["constants"].values())
    assert load(name).chunk_tokens > 0


def test_an_unknown_device_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"--device a100 is unknown; choose one of: .*h200-llama3\.1-8b"):
        load("a100")
