"""Our radix cache by name, under a policy of SGLang's: the tree it inherits, with nothing of ours in it."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.server
SCRIPT = """
import json, logging, warnings
warnings.simplefilter("ignore"); logging.disable(logging.WARNING)
from sglang.srt.plugins import load_plugins
load_plugins()
from astraea_sglang.bench import device
from astraea_sglang.patches.peer import Peer
from astraea_sglang.patches.virtual import build
peer = Peer([], device.load("h200-llama3.1-8b"))
scheduler = build(
    peer, schedule_policy="fcfs", radix_cache_backend="astraea", max_total_tokens=2000, max_running_requests=8
)
tree = scheduler.tree_cache
print(json.dumps([type(tree).__name__, type(tree.tree_core).__name__, hasattr(scheduler, "astraea"), tree.engine]))
"""


def test_the_cache_can_be_chosen_by_name_under_any_policy():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == ["AstraeaRadixCache", "AstraeaTreeCore", False, None]
