"""The sleeping emulator against virtual time: the same programs on a whole server, in real time, over HTTP.

What a request's way through HTTP and processes takes, a few milliseconds, is in the one and not in the other, and an
engine at its limits turns milliseconds into another order. So the device is three times slower than an H200, and the
load one under which programs wait, but moving each tool by some milliseconds moves no mean by more than 1%.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import httpx
import pytest

from astraea_sglang.bench import device, figures, live, workloads
from astraea_sglang.bench.emulated import emulated_server
from astraea_sglang.bench.plans import ProgramPlan
from astraea_sglang.bench.policies import Policy, parse
from astraea_sglang.serving import Server

pytestmark = pytest.mark.server
H200 = "h200-llama3.1-8b"
SLOWER = 3.0
SIZE: dict[str, Any] = {"pool_tokens": 60_000, "max_running": 12}
QUICK_TOOLS = ("math", "qa", "ve")
MOST_SEGMENTS = 15


def plans() -> list[ProgramPlan]:
    """Programs that together last half a minute or so."""
    planned = workloads.plan("infercept", load=3.5, programs=100, seed=1)
    return [plan for plan in planned if plan.program_class in QUICK_TOOLS and len(plan.segments) <= MOST_SEGMENTS]


class Emulated(NamedTuple):
    server: Server
    policy: Policy
    device: Path


@pytest.fixture(scope="module", params=["fcfs", "fcfs:mixed-chunk=on", "astraea:mixed-chunk=on"])
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulated]:
    folder = tmp_path_factory.mktemp("emulated")
    (policy,) = parse(request.param)
    slow = slower(folder / "slow.json")
    with start(policy, slow, folder / "log") as server:
        yield Emulated(server, policy, slow)


def start(policy: Policy, slow: Path, log: Path) -> AbstractContextManager[Server]:
    """A fresh one, for what the policy learns in one replay changes the next."""
    return emulated_server(str(slow), policy, log, **SIZE)


def slower(path: Path) -> Path:
    about = json.loads((device.FOLDER / f"{H200}.json").read_text())
    for name, constant in about["constants"].items():
        if name.endswith("_s"):
            constant["value"] *= SLOWER
    path.write_text(json.dumps(about))
    return path


REPLAY = """
import pickle, sys
from astraea_sglang.bench import device
from astraea_sglang.patches.virtual import replay
plans, path, policy, size, out = pickle.load(sys.stdin.buffer)
replayed = replay(plans, device.load(path), policy, **size)
pickle.dump([(s.program, s.finished) for s in replayed.segments], open(out, "wb"))
"""


def virtual(emulated: Emulated, out: Path) -> dict[str, float]:
    """When does each program finish under virtual time? In a process of its own, which SGLang wants."""
    arguments = pickle.dumps(
        (plans(), str(emulated.device), emulated.policy.name, SIZE | dict(emulated.policy.engine), out)
    )
    command, environment = [sys.executable, "-c", REPLAY], os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, input=arguments, capture_output=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return dict(pickle.loads(out.read_bytes()))


def means(finished: Mapping[str, float]) -> dict[str, float]:
    """Mean JCT in seconds, of all programs and of each class."""
    jct = {plan: finished[plan.id] - plan.arrival_s for plan in plans()}
    kinds = {kind: fmean(s for plan, s in jct.items() if plan.program_class == kind) for kind in QUICK_TOOLS}
    return {"all": fmean(jct.values()), **kinds}


def agrees(server: Server, expected: dict[str, float]) -> bool:
    """Do the programs take as long on `server`, within 3%? Each output must be as long as planned, in any case."""
    segments = live.run(plans(), server.url)
    planned = sorted((plan.id, i, s.output) for plan in plans() for i, s in enumerate(plan.segments))
    assert sorted((s.program, s.segment, s.output) for s in segments) == planned
    measured = means({segment.program: segment.finished for segment in segments})
    print(f"wanted {expected}, got {measured}")
    return measured == pytest.approx(expected, rel=0.03)


def test_programs_take_as_long_as_under_virtual_time(emulated, tmp_path):
    expected = means(virtual(emulated, tmp_path / "virtual"))
    alone = means({s.program: s.finished for s in figures.alone(plans(), device.load(str(emulated.device)))})
    assert expected["all"] > 1.2 * alone["all"]  # they do wait for each other
    if not agrees(emulated.server, expected):  # this machine stood still for a second, perhaps: again, once
        with start(emulated.policy, emulated.device, tmp_path / "log") as fresh:
            assert agrees(fresh, expected)


def generate(emulated: Emulated, **given: Any) -> httpx.Response:
    params = {"temperature": 0, "max_new_tokens": 6, **given}
    body = {"input_ids": [7, 8, 9], "sampling_params": params}
    return httpx.post(emulated.server.url + "/generate", json=body, timeout=60)


@pytest.mark.parametrize(("custom", "ids"), [({"emulated_tokens": 3}, [9, 9, 2]), (None, [9, 9, 9, 9, 9, 2])])
def test_a_request_gets_as_many_tokens_as_it_says_or_as_many_as_it_may(emulated, custom, ids):
    answer = generate(emulated, custom_params=custom).json()
    assert answer["output_ids"] == ids
    assert answer["meta_info"]["finish_reason"]["type"] == "stop"


def test_a_bad_length_is_the_clients_fault_and_the_server_lives_on(emulated):
    refused = generate(emulated, custom_params={"emulated_tokens": 0})
    assert refused.status_code == 400 and "emulated_tokens is 0" in refused.text
    assert generate(emulated).status_code == 200


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("h300", ["--disable-overlap-schedule"], f"ASTRAEA_EMULATE=h300 is unknown; choose one of: {H200}"),
        (H200, [], "add --disable-overlap-schedule"),
    ],
)
def test_a_start_that_cannot_emulate_ends_with_one_line(quiet_environment, name, flags, words):
    command = [shutil.which("sglang", path=str(Path(sys.executable).parent)), "serve", "--model-path", "m", *flags]
    environment = quiet_environment | {"ASTRAEA_EMULATE": name, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("astraea: ") and words in line
