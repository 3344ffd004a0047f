"""What the radix tree says as it evicts is what it holds: on a real tree, checked against its own look-ups."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.server


def test_what_paused_programs_have_left_is_heard_not_looked_up(quiet_environment):
    script = Path(__file__).with_name("residency_script.py")
    done = subprocess.run([sys.executable, script], env=quiet_environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    checks, exact, faults = map(int, done.stdout.split()[-3:])
    assert checks > 1000 and faults == 0
    assert exact / checks > 0.9  # the others lost a prefix that they share
