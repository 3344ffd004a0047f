"""SGLang's host pool on a CPU: what the device pool has no room for is copied there, and back when it is asked for."""

import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from astraea_sglang.serving import start

pytestmark = pytest.mark.server
FLAGS = shlex.split(
    "--schedule-policy fcfs --max-total-tokens 400 --enable-hierarchical-cache --hicache-ratio 4 --enable-cache-report"
)
STORY = "Our lighthouse keeper wrote down the name of every ship that passed, and this is page one of the book. " * 5


def ask(client: httpx.Client, prompt: str) -> dict:
    params = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
    reply = client.post("/generate", json={"text": prompt, "sampling_params": params})
    reply.raise_for_status()
    return reply.json()


@pytest.mark.parametrize(("write_policy", "page_size"), [("write_through", 1), ("write_back", 16)])
def test_what_was_evicted_comes_back_from_the_host_and_gives_the_same_text(write_policy, page_size, tmp_path):
    flags = [*FLAGS, "--hicache-write-policy", write_policy, "--page-size", str(page_size)]
    with start("smollm2", flags, tmp_path / "log") as server, httpx.Client(base_url=server.url, timeout=120) as client:
        first = ask(client, STORY)
        for i in range(6):
            ask(client, f"{i} green bottles " * 20)
        again = ask(client, STORY)
    assert first["meta_info"]["cached_tokens"] == 0
    whole_pages = (first["meta_info"]["prompt_tokens"] - 1) // page_size * page_size  # the last token is computed anew
    assert again["meta_info"]["cached_tokens_details"] == {"device": 0, "host": whole_pages}
    assert again["text"] == first["text"]
    assert "Traceback" not in server.log.read_text()


def test_sglangs_own_launcher_is_told_which_flags_a_cpu_needs(model_directory, quiet_environment):
    command = [str(Path(sys.executable).with_name("sglang")), "serve", "--model-path", str(model_directory)]
    command += ["--enable-hierarchical-cache"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=quiet_environment)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("astraea: --enable-hierarchical-cache on a CPU")
    assert line.endswith("type: --hicache-io-backend direct --hicache-mem-layout layer_first")
