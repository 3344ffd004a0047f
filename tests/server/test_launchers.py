"""Every way to start SGLang with the policy, and with another one: what the log says, and the same tokens from all.

Each test starts a server of its own, one at a time.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from astraea_sglang.serving import Server, run

pytestmark = pytest.mark.server
PROMPTS = ["The capital of France is", "def fibonacci(n):", "Once upon a time"]
POLICY_LINE = "astraea: scheduling agent programs (--schedule-policy astraea)"
SGLANG = [str(Path(sys.executable).with_name("sglang")), "serve"]
OURS = [sys.executable, "-m", "astraea_sglang.launch_server"]


@dataclass(frozen=True)
class Seen:
    """What a client and an operator see of a server."""

    tokens: list[list[int]]
    answer_keys: list[str]
    routes: list[str]
    metrics: set[str]
    log: str


def look(server: Server) -> Seen:
    params = {"temperature": 0, "max_new_tokens": 12}
    with httpx.Client(base_url=server.url, timeout=120) as client:
        # One at a time: the batch is the same whatever the policy.
        answers = [client.post("/generate", json={"text": p, "sampling_params": params}).json() for p in PROMPTS]
        return Seen(
            tokens=[answer["output_ids"] for answer in answers],
            answer_keys=sorted({key for answer in answers for key in (*answer, *answer["meta_info"])}),
            routes=sorted(client.get("/openapi.json").json()["paths"]),
            metrics=set(re.findall(r"^# TYPE (\S+)", client.get("/metrics").text, re.M)),
            log=server.log.read_text(),
        )


def flags(model: Path, *more: str) -> list[str]:
    """What a user without `astraea serve` types: SGLang's own flags, and none for the CPU."""
    return ["--model-path", str(model), "--max-total-tokens", "8192", "--enable-metrics", *more]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    import os

    own = {name: value for name, value in os.environ.items() if not name.startswith(("ASTRAEA_", "SGLANG_"))}
    return own | {"OMP_NUM_THREADS": "1"}  # two servers live at once here


@pytest.fixture(scope="module")
def plain(model_directory, environment, tmp_path_factory) -> Seen:
    """SGLang without our plugin: only the CPU platform, without which it could not run here."""
    with run(
        [*SGLANG, *flags(model_directory)],
        tmp_path_factory.mktemp("plain") / "log",
        environment=environment | {"SGLANG_PLUGINS": "astraea_cpu"},
    ) as server:
        return look(server)


@pytest.mark.parametrize(
    "command", [[*SGLANG, "--schedule-policy", "astraea"], OURS], ids=["sglang serve", "astraea_sglang.launch_server"]
)
def test_a_launcher_shows_the_policy_and_gives_the_same_tokens(command, plain, model_directory, environment, tmp_path):
    start, *policy = (command[:2], *command[2:]) if command[0] == SGLANG[0] else (command,)
    with run([*start, *flags(model_directory, *policy)], tmp_path / "log", environment=environment) as server:
        seen = look(server)
    assert POLICY_LINE in seen.log and "/astraea/programs" in seen.routes
    assert seen.tokens == plain.tokens


def test_astraea_serve_shows_the_policy_what_it_added_and_gives_the_same_tokens(plain, server):
    seen = look(server)
    assert POLICY_LINE in seen.log and "astraea: added for you:" in seen.log
    assert seen.tokens == plain.tokens


def test_the_engine_shows_the_policy_and_gives_the_same_tokens(plain, model_directory, environment):
    script = Path(__file__).with_name("engine_script.py")
    command = [sys.executable, str(script), str(model_directory), "astraea", json.dumps(PROMPTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-4000:]
    assert POLICY_LINE in printed
    assert json.loads(re.findall(r"^OUTPUTS (.*)$", done.stdout, re.M)[0]) == plain.tokens


def test_with_another_policy_the_plugin_changes_nothing_observable(plain, model_directory, environment, tmp_path):
    with run([*SGLANG, *flags(model_directory)], tmp_path / "log", environment=environment) as server:
        seen = look(server)
        sane = httpx.post(server.url + "/generate", json={"text": "x", "session_id": "y" * 300}, timeout=60)
    assert (seen.tokens, seen.answer_keys, seen.routes) == (plain.tokens, plain.answer_keys, plain.routes)
    assert seen.metrics == plain.metrics and POLICY_LINE not in seen.log
    assert sane.status_code == 200  # SGLang's own rules for a session_id, not ours
