"""Two real tensor-parallel ranks over gloo decide alike: on one server, under thrash, call by call.

Each rank's scheduler has a program table of its own, and learns of requests, time and costs from rank 0's broadcast.
Compared is all that each told its table (arrivals, ticks, admissions, retractions, ends) and every plan it got back.
Their string hashes and clocks differ, so whatever hangs on those shows.
"""

import json
import os
import random
import shlex
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import httpx
import pytest

from astraea_sglang.serving import Server, run

pytestmark = pytest.mark.server
PROGRAMS, SEGMENTS, VOCABULARY = 10, 4, 1024
MODEL = {  # the embedded model has 3 KV heads: two ranks cannot share them
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
}
STRUCTURE = {
    "nodes": [
        {"id": "loop", "kind": "loop", "body": "act", "most": 8},
        {"id": "act", "kind": "segment", "expected_tokens": 50, "next": ["loop"]},
    ]
}
FLAGS = shlex.split(
    "--load-format dummy --skip-tokenizer-init --schedule-policy astraea --tp 2 --disable-overlap-schedule"
    " --mem-fraction-static 0.5 --max-total-tokens 1024 --max-running-requests 7"
)
SETTINGS = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "SGLANG_CPU_OMP_THREADS_BIND": "0|1",  # without it SGLang wants a NUMA node for each rank
    "SGLANG_TEST_RETRACT": "1",  # one running segment every so many steps, besides what memory demands
    "SGLANG_TEST_RETRACT_INTERVAL": "25",
}


def recorded_server(folder: Path, quiet_environment: dict[str, str]) -> AbstractContextManager[Server]:
    """A server of two ranks with rank_recorder installed: for its processes `folder` is one more site-packages."""
    shutil.copy(Path(__file__).with_name("rank_recorder.py"), folder)
    about = folder / "rank_recorder-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: rank-recorder\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[sglang.srt.plugins]\nrank_recorder = rank_recorder:install\n")
    (folder / "config.json").write_text(json.dumps(MODEL))
    environment = quiet_environment | SETTINGS
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [environment.get("PYTHONPATH")])])
    environment.pop("PYTHONHASHSEED", None)
    command = [str(Path(sys.executable).with_name("sglang")), "serve", "--model-path", str(folder), *FLAGS]
    return run(command, folder / "server.log", environment=environment)


def agent(url: str, number: int) -> None:
    """One program: segments whose prompt grows, with pauses; every other program announces its end afterwards."""
    rng = random.Random(number)
    program = {"program_id": f"p{number}", "program_class": f"class {number % 3}", "next_tool": "search"}
    program |= {"parent_id": "p0"} if number in (4, 7) else {}
    program |= {"structure": STRUCTURE, "node": "act"} if number % 3 == 1 else {}
    shared, own = (0, 150) if number % 3 == 2 else (80, 30)  # warm ones pass the gate, cold ones may not
    context = [7] * shared + [rng.randrange(3, VOCABULARY) for _ in range(own)]
    with httpx.Client(base_url=url, timeout=60) as client:
        for i in range(SEGMENTS):
            hints = program | {"final": i == SEGMENTS - 1 and number % 2 == 0}
            params = {"temperature": 0, "ignore_eos": True, "max_new_tokens": rng.randrange(20, 80)}
            params["custom_params"] = {"astraea": hints}
            body = {"rid": f"p{number}-{i}", "input_ids": context, "sampling_params": params}
            body |= {"priority": 1} if number == 9 else {}
            answer = client.post("/generate", json=body).raise_for_status().json()
            context = context + answer["output_ids"] + [rng.randrange(3, VOCABULARY) for _ in range(20)]
            time.sleep(rng.uniform(0, 0.2))
        if number % 2:
            event = {"event": "program_end", "program_id": f"p{number}"}
            client.post("/astraea/events", json=event).raise_for_status()


def test_both_ranks_tell_their_table_the_same_and_get_the_same_plans(quiet_environment, tmp_path):
    with recorded_server(tmp_path, quiet_environment) as server, ThreadPoolExecutor(PROGRAMS) as pool:
        programs = [pool.submit(agent, server.url, number) for number in range(PROGRAMS)]
        failures = [failure for program in programs if (failure := program.exception())]
    ranks = [(tmp_path / f"rank{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    differences = ((i, *lines) for i, lines in enumerate(zip_longest(*ranks)) if lines[0] != lines[1])
    first = next(differences, None)
    assert first is None
    assert failures == []
    assert_there_was_much_to_decide([json.loads(line) for line in ranks[0]])


def assert_there_was_much_to_decide(calls: list[Any]) -> None:
    """A long queue put in another order than it came, segments held back by the gate, others retracted."""
    arrived = {rid: i for i, rid in enumerate(answer for name, _, _, answer in calls if name == "arrive")}
    plans = [answer for name, _, _, answer in calls if name == "plan"]
    orders = [[arrived[rid] for rid in order] for order, _ in plans]
    assert max(map(len, orders)) >= PROGRAMS // 2
    assert any(order != sorted(order) for order in orders)
    assert any(blocked for _, blocked in plans)
    assert {"advance", "requeue", "end", "evicted"} <= {name for name, *_ in calls}
