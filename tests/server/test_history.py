"""What a server learned of a class of programs, the next one knows: --astraea-history across a restart."""

import json
import time
from pathlib import Path

import httpx
import pytest

from astraea_sglang.serving import start

pytestmark = pytest.mark.server
FLAGS = ["--max-total-tokens", "4096", "--skip-server-warmup"]


def segment(client: httpx.Client, program: str, **hints: object) -> None:
    custom = {"astraea": {"program_id": program, "program_class": "pair", **hints}}
    params = {"temperature": 0, "max_new_tokens": 3, "ignore_eos": True, "custom_params": custom}
    client.post("/generate", json={"text": "One two", "sampling_params": params}).raise_for_status()


def expected(client: httpx.Client, program: str) -> tuple[float, int]:
    """How many segments and tokens is the program expected to go on for?"""
    rows = client.get("/astraea/programs").json()["ranks"][0]["programs"]
    (row,) = [row for row in rows if row["id"] == program]
    return row["segments_to_come"], row["tokens_to_come"]


def learned(file: Path) -> bool:
    return file.exists() and json.loads(file.read_text())["classes"].get("pair", {}).get("outputs", 0) >= 40


def test_a_restarted_server_knows_how_programs_of_a_class_go_on(tmp_path):
    file = tmp_path / "history.json"
    flags = [*FLAGS, "--astraea-history", str(file)]
    with start("smollm2", flags, tmp_path / "first.log") as server, httpx.Client(base_url=server.url, timeout=60) as at:
        segment(at, "naive")
        assert expected(at, "naive") == (1.0, 3)  # nothing is known of the class yet: as much again as it has done
        for i in range(20):
            for final in (False, False, True):
                segment(at, f"p{i}", final=final)
        deadline = time.monotonic() + 60
        while not learned(file):
            assert time.monotonic() < deadline, file.exists() and file.read_text()
            time.sleep(0.5)
    with (
        start("smollm2", flags, tmp_path / "second.log") as server,
        httpx.Client(base_url=server.url, timeout=60) as at,
    ):
        segment(at, "informed")
        segments, tokens = expected(at, "informed")
        assert segments == pytest.approx(2, rel=0.2) and tokens == pytest.approx(6, rel=0.4)
