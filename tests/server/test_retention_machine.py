"""A storm of programs on the real radix tree, allocator and host pool, by hypothesis and by the dice."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.server
STEPS = 24_000
HAPPENED = ("kv.pin: accepted", "kv.demote: accepted", "finished aborted", "branch", "flush", "storms")


@pytest.mark.timeout(900)
def test_a_storm_of_programs_neither_loses_nor_doubles_a_slot_of_kv(quiet_environment):
    script = Path(__file__).with_name("retention_machine.py")
    command = [sys.executable, str(script), str(STEPS), "--examples", "5"]
    done = subprocess.run(command, env=quiet_environment, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr[-4000:]
    seen = {tuple(line.split()[:2]): line for line in done.stdout.splitlines() if re.match(r"(1|16) \w+ \d+:", line)}
    assert len(seen) == 6  # page sizes 1 and 16; no host pool, write through, write back
    assert sum(int(line.split()[2].rstrip(":")) for line in seen.values()) >= STEPS
    for (_, host), line in seen.items():
        for name in (*HAPPENED, *(("host pool was full",) if host != "none" else ())):
            if name != "kv.demote: accepted" or host != "none":
                assert re.search(rf"{re.escape(name)} [1-9]", line), f"{name} never happened: {line}"
