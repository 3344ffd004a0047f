import asyncio
import json
from dataclasses import fields, replace
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astraea_sglang.bench import calibrate as lab
from astraea_sglang.bench.calibrate import COSTS, REQUEST, Point, calibrate, described, fit, shared_steps
from astraea_sglang.bench.device import Device, load
from astraea_sglang.errors import ConfigError, ServerError

SHAPES = [(0, context) for context in (32, 128, 512, 2048, 8192)]
SHAPES += [(rows, context) for rows in (1, 4, 16, 64) for context in (44, 140, 2060)]
H200 = {"step_s": 8e-3, "row_s": 2e-5, "kv_token_s": 2e-8, "prefill_token_s": 3e-5, "attention_s": 3e-10, REQUEST: 2e-3}
CHUNK = 4096
INFO = {
    "model_path": "/models/m", "dtype": "bfloat16", "device": "cuda", "version": "0.5.23", "attention_backend": "fa3",
    "chunked_prefill_size": CHUNK, "max_req_input_len": 8000, "max_total_num_tokens": 20_000,
}  # fmt: skip


def points(constants: dict[str, float], noise: float = 0.0, seed: int = 1) -> list[Point]:
    """What would be measured on a device with these constants, each point off by `noise` at most?"""
    random, found = Random(seed), []
    for rows, context in SHAPES:
        exact = Point(rows, context, 0.0, 9, 0 if rows else -(-context // CHUNK))
        seconds = sum(n * constants[name] for n, name in zip(exact.terms(), (*COSTS, REQUEST), strict=True))
        found.append(exact._replace(seconds=seconds * (1 + random.uniform(-noise, noise))))
    return found


scales = st.floats(-1, 1).map(lambda power: 10**power)


@settings(deadline=None)
@given(st.tuples(*[scales] * len(H200)))
def test_exact_points_give_the_constants_back(factors):
    true = {name: value * factor for (name, value), factor in zip(H200.items(), factors, strict=True)}
    fitted = fit(points(true))
    assert fitted.constants == pytest.approx(true, rel=1e-4)
    assert max(map(abs, fitted.errors)) < 1e-6


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_noise_of_two_percent_moves_predictions_by_no_more_than_four(seed):
    noisy = points(H200, noise=0.02, seed=seed)
    fitted = fit(noisy)
    assert max(map(abs, fitted.errors)) < 0.04 + 0.02
    for name in ("step_s", "prefill_token_s"):  # what most of the time goes to
        assert fitted.constants[name] == pytest.approx(H200[name], rel=0.1)
    for point, exact in zip(noisy, points(H200), strict=True):
        error = fitted.errors[noisy.index(point)]
        assert point.seconds * (1 + error) == pytest.approx(exact.seconds, rel=0.04)


def test_a_fit_explains_points_as_the_device_model_counts_them():
    """Decode steps as device.step, prompts as device.segment with one token of output, but for the request itself."""
    device = load("h200-llama3.1-8b")
    for point in points(H200 | {REQUEST: 0.0}):
        if point.rows:
            assert point.seconds == pytest.approx(device.step([], point.rows, int(point.rows * point.context)))
        else:
            assert point.seconds == pytest.approx(device.segment(int(point.context), 0, 1))


def test_a_cost_that_does_not_show_is_zero_and_said_to_be():
    found = described("d", flat := points(H200 | {"attention_s": 0.0}), fit(flat), INFO)
    assert found["constants"]["attention_s"]["value"] == pytest.approx(0, abs=1e-13)
    negative = points(H200)
    negative[4] = negative[4]._replace(seconds=negative[4].seconds / 2)  # the longest prompt, quicker than its tokens
    assert described("d", negative, fit(negative), INFO)["constants"]["attention_s"] == {
        "value": 0.0,
        "source": "measured: astraea bench calibrate, 5 prompt lengths and 12 decode batches, m, bfloat16, on cuda; "
        "too small to show",
    }


@pytest.mark.parametrize("few", [[], points(H200)[:3], points(H200)[5:]])
def test_points_that_cannot_tell_constants_apart_are_refused(few):
    with pytest.raises(ConfigError, match="points do not tell 6 constants apart; give the server a larger"):
        fit(few)


def test_steps_count_only_while_every_stream_goes_on():
    early = [(0.0, 1), (1.0, 2), (1.5, 3), (2.0, 4)]
    late = [(1.0, 1), (1.5, 2), (2.5, 4), (3.0, 5)]
    assert shared_steps([early, late]) == [0.5, 0.5, 0.5]
    assert shared_steps([late]) == [0.5, 0.5, 0.5]
    assert shared_steps([[(0.0, 1), (1.0, 2)], [(2.0, 1), (3.0, 2)]]) == []


class StandIn:
    """Stands in for the server, in virtual time: it answers with the stamps that a Device would give, at once."""

    def __init__(self, device: Device, info: dict[str, Any] = INFO) -> None:
        self.device, self.info, self.now = device, info, 0.0
        self.prompts: list[int] = []
        self.alive = 0
        self.transport = httpx.MockTransport(self._answer)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path != "/generate":
            return httpx.Response(200, json=self.info)
        body = json.loads(request.content)
        ids, sampling = body["input_ids"], body["sampling_params"]
        output = sampling["min_new_tokens"] + 1
        began = self.now
        self.alive += 1
        await asyncio.sleep(0)
        batch = self.alive
        await asyncio.sleep(0)
        self.alive -= 1
        if output == 1:
            self.prompts.append(len(ids))
            began += self.device.segment(len(ids), 0, 1)
        parts = []
        for made in range(1, output + 1):
            meta = {"prompt_tokens": len(ids), "cached_tokens": 0, "completion_tokens": made}
            parts.append(f"data: {json.dumps({'output_ids': list(range(made)), 'meta_info': meta})}\n\n")
        return httpx.Response(200, stream=Stream(self, parts, began, batch, len(ids)))


class Stream(httpx.AsyncByteStream):
    """One event per decode step of a batch; the stand-in's clock is set to the time of each."""

    def __init__(self, server: StandIn, parts: list[str], began: float, batch: int, context: int) -> None:
        self._server, self._parts, self._began, self._batch, self._context = server, parts, began, batch, context

    async def __aiter__(self):
        at = self._began
        for made, part in enumerate(self._parts):
            if made:
                at += self._server.device.step([], self._batch, self._batch * (self._context + made))
            self._server.now = at
            yield part.encode()


def measured(monkeypatch: pytest.MonkeyPatch, server: StandIn, **options: Any) -> dict[str, Any]:
    class Clock:  # the stand-in's time instead of the event loop's
        time = staticmethod(lambda: server.now)

    monkeypatch.setattr(lab.asyncio, "get_running_loop", lambda: Clock)
    return calibrate("http://stand-in", transport=server.transport, **options)


def test_a_device_behind_a_server_is_found_again(monkeypatch):
    true = load("h200-llama3.1-8b")
    found = measured(monkeypatch, StandIn(true), name="copy")
    value = {name: entry["value"] for name, entry in found["constants"].items()}
    assert found["name"] == "copy" and set(value) == {field.name for field in fields(Device)}
    assert value["step_s"] == pytest.approx(true.step_s, rel=0.01) and value["chunk_tokens"] == CHUNK
    assert value["prefill_token_s"] == pytest.approx(true.prefill_token_s, rel=0.02)
    assert value["kv_token_s"] == pytest.approx(true.kv_token_s, rel=0.05)
    assert found["residuals"]["worst"] < 0.02
    assert all(entry["source"] for entry in found["constants"].values())


def test_a_slow_or_small_server_is_given_smaller_points_only(monkeypatch):
    slow = StandIn(replace(load("h200-llama3.1-8b"), prefill_token_s=3e-3, step_s=0.05))
    measured(monkeypatch, slow, budget_s=60.0)
    assert 256 <= max(slow.prompts) <= 2048 and slow.now < 75
    small = StandIn(load("h200-llama3.1-8b"), INFO | {"max_total_num_tokens": 3000, "max_req_input_len": 2990})
    found = measured(monkeypatch, small)
    held = [point["rows"] * (point["context"] + 12) for point in found["residuals"]["points"]]
    assert max(small.prompts) <= 0.8 * 3000 and max(held) <= 0.8 * 3000


def test_a_calibration_leaves_a_device_file_and_says_where(tmp_path, monkeypatch, capsys):
    points_of_it = points(H200)
    result = described("mine", points_of_it, fit(points_of_it), INFO)
    monkeypatch.setattr(lab, "calibrate", lambda url, **options: result)
    for out in (tmp_path / "new", tmp_path / "deep" / "mine.json"):
        assert lab.run("http://x", out, "mine") == 0
        target = out if out.suffix else out / "mine.json"
        assert json.loads(target.read_text()) == result and "mine.json" in capsys.readouterr().out
        assert load(str(target)).step_s == pytest.approx(H200["step_s"])


def test_a_server_that_is_not_sglang_cannot_be_calibrated():
    transport = httpx.MockTransport(lambda request: httpx.Response(404))
    with pytest.raises(ServerError, match="does not answer /server_info as SGLang does"):
        calibrate("http://other", transport=transport)
