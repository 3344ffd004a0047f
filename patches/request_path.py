"""What does a request pass of ours between its client and its batch, and what of SGLang's? Real objects, in real time.

Run as a process of its own (`bench-core` does), with other numbers of programs and rounds if given: prints JSON. What
retention does when a program pauses is not in it; that is measured under pressure, see patches/paused.py. Batch and
scheduler are stand-ins that only hold the request; SGLang's sockets, its scheduling and the model are left out, so its
own share is a lower bound.
"""

import asyncio
import json
import sys
from array import array
from collections import defaultdict
from collections.abc import Callable
from random import Random
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any

from sglang.srt.entrypoints.http_server import ORJSONRequest
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.sampling.sampling_params import SamplingParams
from transformers import AutoTokenizer

from astraea_sglang import smollm2
from astraea_sglang.bench.core import seconds
from astraea_sglang.config import Config
from astraea_sglang.patches import intake, lifecycle
from astraea_sglang.patches.args import POLICY
from astraea_sglang.patches.residency import Residency
from astraea_sglang.table import ProgramTable

OPEN = 1000  # programs, each with one finished segment
WORDS, OUTPUT, ANSWER = 1500, 100, 50  # words of a first prompt, tokens of an output, words of a tool's answer
ROUNDS = 300
SGLANG = "SGLang: "  # before the parts that are not ours


def measure(programs: int = OPEN, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """How long does each part take, of the second request of programs that are open? Seconds, p50 and p99.

    Half of the programs are named by their body's session_id, the others not at all; the parts that are SGLang's are
    timed for the same requests, in between.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(str(smollm2.build()))
    manager = SimpleNamespace(server_args=SimpleNamespace(schedule_policy=POLICY))
    table, random = ProgramTable(Config()), Random(1)
    scheduler = SimpleNamespace(
        astraea=lifecycle.Engine(table, Residency(table)), tree_cache=None, schedule_low_priority_values_first=False
    )
    vocabulary = [tokenizer.decode([token]).strip() for token in range(1000, 5000)]
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)

    def passes(rid: str, session: str | None, text: str, ids: "array[int]") -> "array[int]":
        """One request from its parsed body to its end, timed part by part. Returns prompt and output."""
        named = "nameless" if session is None else "named"

        def timed(part: str, work: Callable[[], Any]) -> Any:
            found: list[Any] = []
            spent[part, named].append(seconds(lambda: found.append(work())))
            return found[0]

        body = {"text": text, "sampling_params": {"max_new_tokens": 512}}
        body |= {} if session is None else {"session_id": session}
        request = _request(body)
        obj = timed(SGLANG + "validate", lambda: _validated(GenerateReqInput, body))
        timed("intake", lambda: intake.normalise(manager, obj, request))
        timed(SGLANG + "tokenize", lambda: tokenizer(text).input_ids)
        params = timed(SGLANG + "sampling parameters", lambda: _checked(SamplingParams, obj.sampling_params, tokenizer))
        req = timed(SGLANG + "Req", lambda: Req(rid, text, ids, params, kv_hints=obj.kv_hints, vocab_size=49152))
        scheduler.waiting_queue = [req]
        timed("arrival", lambda: lifecycle.queued(None, scheduler, req))
        table.start(req.astraea, len(ids))
        req.output_ids.extend(random.choices(range(1000, 5000), k=OUTPUT))
        req.finished_reason = FINISH_LENGTH(OUTPUT)
        batch = SimpleNamespace(reqs=[req], forward_mode=ForwardMode.DECODE)
        timed("end", lambda: lifecycle.stepped(None, scheduler, batch, None))
        return ids + req.output_ids

    before = {}
    for i in range(programs):
        text = " ".join(random.choices(vocabulary, k=WORDS))
        before[i] = passes(f"r{i}", None if i % 2 else f"p{i}", text, array("q", tokenizer(text).input_ids))
    opened = len(table.programs) + len(table.nameless.continuations)
    spent.clear()
    for i in random.sample(range(programs), rounds):
        ids = before[i] + array("q", tokenizer(" ".join(random.choices(vocabulary, k=ANSWER))).input_ids)
        passes(f"s{i}", None if i % 2 else f"p{i}", tokenizer.decode(ids), ids)
    if table.counts["faults"] or table.nameless.continuations.counts["recognised"] != len(spent["end", "nameless"]):
        raise RuntimeError(
            f"the policy failed while it was timed: {scheduler.astraea.faults}, {table.counts}, {opened}"
        )
    for kind in ("named", "nameless"):
        parts = {part: times for (part, named), times in spent.items() if named == kind}
        for who in (True, False):
            mine = [times for part, times in parts.items() if part.startswith(SGLANG) == who]
            spent[SGLANG + "all of these" if who else "all of ours", kind] = [
                sum(each) for each in zip(*mine, strict=True)
            ]
    return [
        {"part": part, "kind": kind, "p50_s": median(times), "p99_s": quantiles(times, n=100)[98]}
        for (part, kind), times in sorted(spent.items(), key=lambda item: item[0][0].startswith(SGLANG))
    ]


def _request(body: dict[str, Any]) -> Any:
    """A request as FastAPI hands it on once it has read the body."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode()}

    headers = [(b"content-type", b"application/json"), (b"host", b"127.0.0.1:30000"), (b"user-agent", b"python")]
    request = ORJSONRequest({"type": "http", "headers": headers}, receive)
    asyncio.run(request.json())
    return request


def _validated(kind: Any, body: dict[str, Any]) -> Any:
    obj = kind(**body)
    obj.normalize_batch_and_arguments()
    return obj


def _checked(kind: Any, given: dict[str, Any], tokenizer: Any) -> Any:
    params = kind(**given)
    params.normalize(tokenizer)
    params.verify(49152)
    return params


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:]))))
