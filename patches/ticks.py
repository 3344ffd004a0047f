"""Rank 0's clock. It rides the request broadcast, so that every tensor-parallel rank decides at the same time."""

import time
from itertools import islice
from typing import Any

from astraea_sglang.costs import Costs
from astraea_sglang.patches.eviction import RERANK
from astraea_sglang.patches.lifecycle import Engine
from astraea_sglang.patches.memory import Memory as HistoryFile
from astraea_sglang.patches.messages import AstraeaTick
from astraea_sglang.tree import Memory

INTERVAL = 0.05  # seconds


def poll(result: list[Any], scheduler: Any) -> list[Any] | None:
    """AFTER Scheduler._poll_timeout_aborts, which only the leader calls each pass: add a tick when one is due.

    Without programs there is nothing to time. Even with --sleep-on-idle a pass comes every second, so reaping goes on.
    """
    engine: Engine | None = getattr(scheduler, "astraea", None)
    if engine is None:
        return None
    kept: list[Any] = []
    if path := engine.table.config.history:
        engine.memory = engine.memory or HistoryFile(path)
        try:
            kept = engine.memory.poll(engine)
        except Exception:
            engine.remembers = True  # the file of earlier runs has gone, or changed: go on without it
            engine.fault("history")
    now = time.monotonic()
    if engine.metrics is not None and engine.keeper is not None:
        try:
            engine.metrics.export(engine.keeper, now)
        except Exception:
            engine.metrics = None
            engine.fault("metrics")
    if engine.table.programs and now - engine.ticked >= INTERVAL:
        engine.ticked = now
        kept.append(AstraeaTick(now=now, costs=list(engine.steps.costs())))
    return [*result, *kept] if kept else None


def apply(engine: Engine, scheduler: Any, tick: AstraeaTick) -> None:
    """Handle a tick, on every rank."""
    try:
        engine.table.advance(tick.now, Costs(*tick.costs))
        if engine.keeper is not None:
            tree = scheduler.tree_cache
            tree.tree_core.epoch = int(tick.now / RERANK)
            engine.keeper.tick(Memory(tree.token_to_kv_pool_allocator.size, tree.protected_size(), _wanted(scheduler)))
    except Exception:
        engine.fault("tick")


def _wanted(scheduler: Any) -> int:
    """How many tokens do the segments at the head of the queue take? As many as could run at once."""
    return sum(len(req.origin_input_ids) for req in islice(scheduler.waiting_queue, scheduler.max_running_requests))
