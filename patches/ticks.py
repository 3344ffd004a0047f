"""Rank 0's clock. It rides the request broadcast, so that every tensor-parallel rank decides at the same time."""

import time
from typing import Any

from astraea_sglang.patches.lifecycle import Engine
from astraea_sglang.patches.messages import AstraeaTick
from astraea_sglang.predict import Costs

INTERVAL = 0.05  # seconds


def poll(result: list[Any], scheduler: Any) -> list[Any] | None:
    """AFTER Scheduler._poll_timeout_aborts, which only the leader calls each pass: add a tick when one is due.

    Without programs there is nothing to time. Even with --sleep-on-idle a pass comes every second, so reaping goes on.
    """
    engine: Engine | None = getattr(scheduler, "astraea", None)
    if engine is None or not engine.table.programs:
        return None
    now = time.monotonic()
    if now - engine.ticked < INTERVAL:
        return None
    engine.ticked = now
    prefill, decode = engine.steps.costs()
    return [*result, AstraeaTick(now=now, prefill=prefill, decode=decode)]


def apply(engine: Engine, tick: AstraeaTick) -> None:
    """Handle a tick, on every rank."""
    try:
        engine.table.advance(tick.now, Costs(tick.prefill, tick.decode))
    except Exception:
        engine.fault("tick")
