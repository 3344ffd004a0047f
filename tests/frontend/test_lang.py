import subprocess
import sys

import pytest

RUN_WITHOUT_TORCH = """
import sys
from astraea_sglang.frontend import sgl
from sglang.lang.backend.base_backend import BaseBackend
def body(s):
    s += sgl.tool("t", str.upper, "x")
assert sgl.function(body)(backend=BaseBackend()).text() == "X"
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""


WHOLE_AFTERWARDS = """
import sglang, torch
assert sglang.gen is sgl.gen and sglang.lang.ir and sglang.srt.environ and sglang.Engine
"""


def python(code: str):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_program_needs_no_torch():
    python(RUN_WITHOUT_TORCH)


@pytest.mark.server  # slow set, for it imports torch
def test_importing_sglang_afterwards_gives_the_whole_of_it():
    python(RUN_WITHOUT_TORCH + WHOLE_AFTERWARDS)
