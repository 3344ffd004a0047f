"""What does retention cost where many programs are paused? Passes of SGLang's scheduler under pressure, in real time.

Run as a process of its own for each policy (`bench-core` does): prints one JSON object.
"""

import json
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.plugins import load_plugins

from astraea_sglang.bench import device
from astraea_sglang.bench.core import seconds
from astraea_sglang.bench.crowd import Coming
from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan
from astraea_sglang.patches.peer import Peer
from astraea_sglang.patches.virtual import build, virtual_time

PAUSED, PROMPT, OUTPUT = 1000, 1900, 101  # programs, tokens of each: 2,000 tokens of KV
CHATS, FROM, EVERY = 600, 300.0, 0.07  # programs of one segment that come when all of those are paused, seconds
ROUNDS = 200


class _Watched(Peer):
    """Times every pass, by what it did, once the chats have come; ends the run when they are over."""

    measuring = False
    stamp = 0.0

    def recv_requests(self, local_reqs: Any) -> list[Any]:
        self.measuring = self.clock.elapsed > FROM + 20 * EVERY
        if self.crowd.unfinished <= PAUSED:
            self.scheduler.gracefully_exit = True
        return super().recv_requests(local_reqs)

    def forward(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        now = self._real_clock()
        if self.measuring:
            self.between.append(now - self.stamp)
        result = super().forward(batch, *args, **kwargs)
        self.stamp = self._real_clock()  # what the emulated device takes is not the scheduler's time
        return result

    between: list[float]


class _Spent:
    """Adds up the real time of some functions while `peer` measures."""

    def __init__(self, peer: _Watched) -> None:
        self._peer, self._depth, self.seconds, self.calls = peer, 0, 0.0, 0

    def on(self, owner: Any, *names: str) -> None:
        for name in names:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        clock = self._peer._real_clock

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            began = clock()
            try:
                return work(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._peer.measuring and not self._depth:
                    self.seconds += clock() - began
                    self.calls += 1

        return timed


def measure(policy: str) -> dict[str, Any]:
    """How long are the scheduler's passes, and what of that is eviction and what is ours? Seconds per pass, medians.

    And how long do a lock and an unlock of 2,000 tokens take, SGLang's and ours?
    """
    load_plugins()
    first = SegmentPlan(PROMPT, OUTPUT, 1e6, "search"), SegmentPlan(20, 20, 0.0, None)
    plans = [ProgramPlan(f"p{i}", f"c{i % 7}", i * 0.25, 512, first) for i in range(PAUSED)]
    chat = (SegmentPlan(1000, 300, 0.0, None),)
    plans += [ProgramPlan(f"q{i}", "chat", FROM + i * EVERY, 512, chat) for i in range(CHATS)]
    peer = _Watched(plans, device.load("h200-llama3.1-8b"))
    peer.between = []
    pool = PAUSED * (PROMPT + OUTPUT)
    scheduler: Any = build(peer, schedule_policy=policy, max_total_tokens=pool, max_running_requests=64)
    tree, engine = scheduler.tree_cache, getattr(scheduler, "astraea", None)
    ours, evicting, looks = _Spent(peer), _Spent(peer), _Spent(peer)
    evicting.on(tree, "_evict_components")
    if engine is not None:
        ours.on(engine.keeper, "tick", "paused", "returned", "resumed", "ended")
        ours.on(tree, "ends")
        looks.on(engine.keeper, "_look")
    with virtual_time(peer):
        scheduler.run_event_loop()
    passes = len(peer.between)
    found = {
        "policy": policy,
        "core": type(tree.tree_core).__name__,
        "passes": passes,
        "pass_s": sum(peer.between) / passes,
        "pass_median_s": median(peer.between),
        "evict_s": evicting.seconds / passes,
        "retention_s": ours.seconds / passes,
    }
    if engine is not None:
        found["paused"] = len(engine.keeper.holdings)
        found["decision_s"] = looks.seconds / max(1, looks.calls)
    prompt: Any = peer.request(Coming(0.0, PAUSED - 1, 1)).input_ids
    node = tree.match_prefix(MatchPrefixParams(key=RadixKey(prompt, None))).last_device_node
    found["lock_s"] = median(seconds(lambda: tree.unlock(tree.lock(node))) for _ in range(ROUNDS))
    if engine is not None:
        found["pin_s"] = median(seconds(lambda: tree.unpin(tree.pin(node, pool)[0])) for _ in range(ROUNDS))
    return found


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
