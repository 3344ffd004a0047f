"""What `bench-core` says of a request's path. The measurement is a process of its own, as in the command."""

import io

import pytest
from rich.console import Console

from astraea_sglang.bench import core


def part(name: str, kind: str, p50_us: float, p99_us: float) -> dict:
    return {"part": name, "kind": kind, "p50_s": p50_us / 1e6, "p99_s": p99_us / 1e6}


def test_the_path_table_shows_named_and_nameless_requests_side_by_side():
    rows = [part("intake", "named", 51, 99), part("end", "named", 1, 2), part("end", "nameless", 7, 8),
            part("intake", "nameless", 40, 80)]  # fmt: skip
    text = io.StringIO()
    Console(file=text, width=100).print(core.path_table(rows))
    told = " ".join(text.getvalue().split())
    assert "intake 51 99 40 80" in told and "end 1 2 7 8" in told


@pytest.mark.server
def test_a_requests_path_is_measured_beside_sglangs_own_work():
    rows = core._alone("astraea_sglang.patches.request_path", "40", "20")
    assert {row["kind"] for row in rows} == {"named", "nameless"}
    us = {(row["part"], row["kind"]): row["p50_s"] * 1e6 for row in rows}
    for kind in ("named", "nameless"):
        ours = [us[part, kind] for part in ("intake", "arrival", "end")]
        assert min(ours) > 0
        assert max(ours) <= us["all of ours", kind] < us["SGLang: all of these", kind]
    assert all(row["p50_s"] <= row["p99_s"] for row in rows)
