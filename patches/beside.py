"""Our pass over the waiting queue beside SGLang's lpm: one scheduler, one queue of real requests, one radix tree."""

from collections.abc import Sequence
from random import Random
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.managers import schedule_policy
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.plugins import load_plugins

from astraea_sglang.bench import device
from astraea_sglang.bench.core import seconds
from astraea_sglang.bench.crowd import Coming
from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan
from astraea_sglang.patches import lifecycle
from astraea_sglang.patches.args import POLICY
from astraea_sglang.patches.peer import Peer
from astraea_sglang.patches.virtual import build

PROMPT, NEW = 1000, 20  # tokens: what a program has computed, and what its next segment adds


def measure(sizes: Sequence[int], rounds: int) -> tuple[list[dict[str, Any]], float]:
    """How long is a pass over each size of queue under our policy and under lpm, whatever lpm's own limit says?

    Medians of seconds, interleaved; every other request's program still has its KV in the tree. And how long does the
    hook after a decode step take for each running request, seconds?
    """
    load_plugins()
    segments = (SegmentPlan(PROMPT, 100, 1.0, "search"), SegmentPlan(NEW, 100, 0.0, None))
    plans = [ProgramPlan(f"p{i}", f"c{i % 7}", 0.0, 512, segments) for i in range(max(sizes))]
    peer = Peer(plans, device.load("h200-llama3.1-8b"))
    pool = len(plans) * (PROMPT + NEW)
    scheduler: Any = build(peer, schedule_policy=POLICY, max_total_tokens=pool, max_running_requests=256)
    lpm: Any = schedule_policy.SchedulePolicy("lpm", scheduler.tree_cache, False, False, False)
    for i in range(len(plans)):
        peer.request(Coming(0.0, i, 0))  # never sent: a prompt follows the one before it
    scheduler.process_input_requests([peer.request(Coming(0.0, i, 1)) for i in range(len(plans))])
    for req in scheduler.waiting_queue[::2]:
        value = scheduler.token_to_kv_pool_allocator.alloc(PROMPT)
        scheduler.tree_cache.insert(InsertParams(key=RadixKey(req.origin_input_ids[:PROMPT], None), value=value))
    limit = schedule_policy.WAITING_QUEUE_PREFIX_MATCH_MAX
    rows = []
    for size in sizes:
        ours: list[float] = []
        theirs: list[float] = []
        for i in range(rounds):
            queue = scheduler.waiting_queue[:size]
            Random(i).shuffle(queue)
            ours.append(seconds(lambda queue=queue: scheduler.policy.calc_priority(queue)))
            Random(i).shuffle(queue)
            schedule_policy.WAITING_QUEUE_PREFIX_MATCH_MAX = size + 1
            try:
                theirs.append(seconds(lambda queue=queue: lpm.calc_priority(queue)))
            finally:
                schedule_policy.WAITING_QUEUE_PREFIX_MATCH_MAX = limit
        rows.append({"waiting": size, "ours_s": median(ours), "lpm_s": median(theirs), "matched": min(size, limit)})
    if scheduler.astraea.table.counts["faults"]:
        raise RuntimeError(f"the policy failed while it was timed: {scheduler.astraea.faults}")
    return rows, _step_s(scheduler, 256, rounds)


def _step_s(scheduler: Any, running: int, rounds: int) -> float:
    """Seconds of the hook after a decode step, per running request. The batch around real requests is a stand-in."""
    reqs = scheduler.waiting_queue[:running]
    for req in reqs:
        scheduler.astraea.table.start(req.astraea, NEW)
        req.output_ids.append(7)
    batch = SimpleNamespace(
        reqs=reqs, forward_mode=ForwardMode.DECODE, decoding_reqs=None, seq_lens_cpu=torch.full((len(reqs),), PROMPT)
    )
    scheduler.astraea.launched.append(0.0)
    return median(seconds(lambda: lifecycle.stepped(None, scheduler, batch, None)) for _ in range(rounds)) / len(reqs)
