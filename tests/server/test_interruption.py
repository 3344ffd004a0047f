"""A server never outlives the process that started it."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

OWNER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
from pathlib import Path
from astraea_sglang.serving import run, start
log = Path(sys.argv[1])
stuck = run([sys.executable, "-c", "import time; time.sleep(600)"], log)
with start("smollm2", ["--max-total-tokens", "2048"], log) if sys.argv[2] == "real" else stuck as server:
    print("ready", flush=True)
    input()
"""


def family(owner: subprocess.Popen[str], at_least: int) -> list[psutil.Process]:
    deadline = time.monotonic() + 60
    while len(found := psutil.Process(owner.pid).children(recursive=True)) < at_least:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def owner_of(kind: str, log) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OWNER, str(log), kind]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert alive == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_server_that_still_starts_goes_with_its_owner(how, tmp_path):
    owner = owner_of("stuck", tmp_path / "log")
    processes = family(owner, 1)
    owner.send_signal(how)
    owner.wait(30)
    assert_gone(processes)


@pytest.mark.server
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_running_server_and_all_its_processes_go_with_their_owner(how, tmp_path):
    owner = owner_of("real", tmp_path / "log")
    assert owner.stdout is not None and owner.stdout.readline() == "ready\n"
    processes = family(owner, 3)  # HTTP server, scheduler, detokenizer
    owner.send_signal(how)
    owner.wait(60)
    assert_gone(processes)
