"""How fast is a real server's device? Prompts and batches are timed over HTTP, and device.py is fitted to them."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx
from rich.console import Console

from astraea_sglang.bench import probe, wire
from astraea_sglang.bench.device import FOLDER, Device
from astraea_sglang.bench.live import connect
from astraea_sglang.errors import ConfigError, ServerError

COSTS = ("step_s", "row_s", "kv_token_s", "prefill_token_s", "attention_s")
REQUEST = "request_s"  # what a request costs besides its passes: HTTP, the tokenizer, the scheduler
CONTEXTS = (32, 128, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)  # tokens of a prompt
BATCHES = (1, 2, 4, 8, 16, 32, 64)
DECODED = 24  # tokens of an output whose decode steps are timed
REPEATS = 3  # of a prompt length, at least
NEEDED = 3, 2  # so many contexts and batches are measured however long it takes: fewer do not tell constants apart
BUDGET_S = 150.0
FILL = 0.8  # of the KV pool, at most: nothing may be evicted or retracted
BASE = "h200-llama3.1-8b"  # where constants come from that cannot be measured over HTTP

Watch = Callable[[str, float], None]  # hears what is being measured, and which share of the time is gone


class Point(NamedTuple):
    """One measurement: a prompt of `context` tokens computed, if `rows` is 0; else a decode step of `rows` requests."""

    rows: int
    context: float  # tokens, of each row
    seconds: float  # the median of `samples`
    samples: int
    chunks: int = 0  # passes that a prompt took

    def terms(self) -> tuple[float, ...]:
        """How often does the model of device.py count each of COSTS in it, and REQUEST?"""
        if self.rows:
            return (1, self.rows, self.rows * self.context, 0, 0, 0)
        return (self.chunks, 0, 0, self.context, self.context**2 / 2, 1)


@dataclass(frozen=True, slots=True)
class Fit:
    """The constants by their names in seconds, and by how much each point differs from them (shares of it)."""

    constants: dict[str, float]
    errors: list[float]


def fit(points: Sequence[Point]) -> Fit:
    """Which constants explain `points`? None is negative; errors count relative to each point's seconds.

    Raises ConfigError when the points cannot tell the constants apart.
    """
    import numpy as np
    from scipy.optimize import nnls

    rows = np.array([point.terms() for point in points], dtype=float).reshape(-1, len(COSTS) + 1)
    rows /= np.array([point.seconds for point in points]).reshape(-1, 1)
    size = np.abs(rows).max(axis=0, initial=0)
    scaled = rows / np.where(size > 0, size, 1)
    if len(points) < scaled.shape[1] or np.linalg.matrix_rank(scaled) < scaled.shape[1]:
        raise ConfigError(
            f"{len(points)} points do not tell {scaled.shape[1]} constants apart; give the server a larger "
            "--max-total-tokens (4000 or more) and --max-running-requests (2 or more)"
        )
    found, _ = nnls(scaled, np.ones(len(points)))
    constants = found / size
    errors = rows @ constants - 1
    return Fit(dict(zip((*COSTS, REQUEST), map(float, constants), strict=True)), [float(error) for error in errors])


def calibrate(
    url: str,
    *,
    name: str = "measured",
    budget_s: float = BUDGET_S,
    watch: Watch = lambda what, share: None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> dict[str, Any]:
    """What does the device of the SGLang server at `url` cost? In the form of the files in devices/, and residuals.

    Prompts that nobody sent before are timed to their first token, decode steps of many requests at once by the tokens
    as they come. Larger prompts and batches are left out where they would take more than `budget_s` seconds in all,
    but for the few without which nothing can be fitted.
    Nothing else may run on the server. Raises ServerError when it goes away or is not SGLang.
    """
    return asyncio.run(_calibrate(url, name, budget_s, watch, transport))


def run(url: str, out: Path, name: str = "measured") -> int:
    """Calibrate, print what came out, leave a file for --device: `out`.json itself, or `name`.json in the folder `out`.

    Returns 0. Raises ConfigError when it cannot be written, ServerError as `calibrate` does.
    """
    console = Console()
    target = out if out.suffix == ".json" else out / f"{name}.json"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(
            f"{target.parent} cannot be made a folder ({problem.strerror}); type another --out"
        ) from problem
    with console.status("asking the server") as status:
        found = calibrate(
            url, name=target.stem, watch=lambda what, share: status.update(f"{what} ({share:.0%} of the time)")
        )
    target.write_text(json.dumps(found, indent=1) + "\n")
    for constant, entry in found["constants"].items():
        console.print(f"{constant:>16} {entry['value']:<12.4g} {entry['source']}", soft_wrap=True, highlight=False)
    residuals = found["residuals"]
    off = f"off by {residuals['median']:.1%} (median), {residuals['worst']:.1%} (worst)"
    console.print(f"{len(residuals['points'])} points, {off}", highlight=False)
    console.print(f"{target}  (type: --device {target})", soft_wrap=True)
    return 0


async def _calibrate(
    url: str, name: str, budget_s: float, watch: Watch, transport: httpx.AsyncBaseTransport | None
) -> dict[str, Any]:
    async with connect(url, transport) as client:
        try:
            target = await probe.probe(client, "sglang", lambda text: None)
            points = await _Bench(client, target, budget_s, watch).points()
        except httpx.TransportError as problem:
            raise ServerError(f"{url} went away ({problem!r}); see the server's log") from problem
    return described(name, points, fit(points), target.info)


def described(name: str, points: Sequence[Point], fitted: Fit, info: dict[str, Any]) -> dict[str, Any]:
    """How is a calibration kept? `info` is the server's own /server_info."""
    what = f"{Path(info['model_path']).name}, {info.get('dtype')}, on {info.get('device')}"
    decodes = sum(1 for point in points if point.rows)
    how = f"measured: astraea bench calibrate, {len(points) - decodes} prompt lengths and {decodes} decode batches"
    constants: dict[str, Any] = {}
    for cost in COSTS:
        value = fitted.constants[cost]
        constants[cost] = {"value": value, "source": f"{how}, {what}" + ("" if value else "; too small to show")}
    source = "the server's chunked_prefill_size" if _chunk(info) else "no chunks on this server: its longest context"
    constants["chunk_tokens"] = {"value": _chunk(info) or info["max_req_input_len"], "source": source}
    base = json.loads((FOLDER / f"{BASE}.json").read_text())["constants"]
    for field in fields(Device):
        if field.name not in constants:
            constants[field.name] = base[field.name] | {
                "source": f"not measured, as {BASE}: {base[field.name]['source']}"
            }
    errors = [abs(error) for error in fitted.errors]
    return {
        "name": name,
        "about": f"{what}, SGLang {info.get('version')}, attention {info.get('attention_backend')}. Fitted with "
        f"non-negative least squares of relative errors; a request costs {fitted.constants[REQUEST]:.3g} s besides.",
        "constants": constants,
        "residuals": {
            "median": median(errors),
            "worst": max(errors),
            "points": [point._asdict() | {"error": e} for point, e in zip(points, fitted.errors, strict=True)],
        },
    }


def _chunk(info: dict[str, Any]) -> int | None:
    size = info.get("chunked_prefill_size")
    return size if size and size > 0 else None


class _Bench:
    """Times prompts and batches on an idle server, the cheap ones first, as long as there is time."""

    def __init__(self, client: httpx.AsyncClient, target: wire.Target, budget_s: float, watch: Watch) -> None:
        self._client, self._target, self._budget_s, self._watch = client, target, budget_s, watch
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._chunk = _chunk(target.info) or target.info["max_req_input_len"]
        self._sent = 0

    async def points(self) -> list[Point]:
        """Everything that can be measured in the time: each context's prompts, then its batches."""
        info, prompts, decodes = self._target.info, [], []
        longest = min(info["max_req_input_len"] - DECODED, int(FILL * info["max_total_num_tokens"]) - DECODED)
        most = info.get("max_running_requests") or max(BATCHES)
        rate, step = 0.0, 0.0  # seconds: of a prompt token, of a decode step, as seen last
        await self._send(self._ids(8), 8)  # the first of anything is slow
        for context in CONTEXTS:
            seconds, warm = [], []
            needed = len(prompts) < NEEDED[0]
            if context > longest or not (needed or self._time(REPEATS * context * rate * 1.3)):
                break
            for batch in (size for size in BATCHES if size <= most):
                missing = max(REPEATS, batch) - len(warm)
                cost = missing * context * rate + DECODED * step * 1.5
                if batch * (context + DECODED) > FILL * info["max_total_num_tokens"]:
                    break
                if not ((needed and batch <= NEEDED[1]) or self._time(cost)):
                    break
                self._watch(f"prompts of {context} tokens, batches of {batch}", self._gone())
                for _ in range(missing):
                    warm.append(self._ids(context))
                    seconds.append(await self._prompt(warm[-1]))
                gaps = await self._decode(warm[:batch])
                rate = median(seconds) / context
                if gaps:
                    step = median(gaps)
                    decodes.append(Point(batch, context + DECODED / 2, step, len(gaps)))
            if seconds:
                prompts.append(Point(0, context, median(seconds), len(seconds), -(-context // self._chunk)))
            await probe.flush(self._client)
        return prompts + decodes

    def _gone(self) -> float:
        return (self._loop.time() - self._began) / self._budget_s

    def _time(self, seconds: float) -> bool:
        return self._loop.time() - self._began + seconds < self._budget_s

    def _ids(self, count: int) -> list[int]:
        self._sent += 1
        return wire.tokens(f"calibrate {self._sent}", count)

    async def _send(self, ids: list[int], output: int) -> wire.Answer:
        path, body = wire.request(self._target, ids, output=output, declared=output, every=1)
        return await wire.generate(self._client, path, body, self._loop.time)

    async def _prompt(self, ids: list[int]) -> float:
        began = self._loop.time()
        return (await self._send(ids, 1)).stamps[0][0] - began

    async def _decode(self, prompts: Sequence[list[int]]) -> list[float]:
        """Seconds of the decode steps in which all `prompts`, computed before, are in the batch."""
        answers = await asyncio.gather(*(self._send(ids, DECODED) for ids in prompts))
        return shared_steps([answer.stamps for answer in answers])


def shared_steps(streams: Sequence[Sequence[tuple[float, int]]]) -> list[float]:
    """How long did a token take while all `streams` went on? In seconds; each stream is of (second, tokens so far)."""
    begun, ended = max(stream[0][0] for stream in streams), min(stream[-1][0] for stream in streams)
    return [
        (later - earlier) / (more - fewer)
        for stream in streams
        for (earlier, fewer), (later, more) in pairwise(stream)
        if begun <= earlier and later <= ended
    ]
