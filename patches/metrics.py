"""Retention in SGLang's Prometheus endpoint (`--enable-metrics`): totals as counters, what is held now as gauges."""

from typing import Any

from astraea_sglang.keeper import Keeper

EVERY = 1.0  # seconds between two exports: a counter of several processes writes a file
COUNTERS = {
    "decisions_preserve": ("preserve_decisions", "decisions to preserve a paused program's KV"),
    "decisions_swap": ("swap_decisions", "decisions to swap it to the host"),
    "decisions_discard": ("discard_decisions", "decisions to discard it"),
    "mispredictions": ("mispredictions", "decisions another choice would have been better than"),
    "preserved_token_seconds": ("preserved_token_seconds", "tokens preserved, times seconds"),
    "discarded_tokens": ("discarded_tokens", "tokens freed at once by a decision"),
    "freed_at_end_tokens": ("freed_at_end_tokens", "tokens freed because their program was over"),
    "prefetched_tokens": ("prefetched_tokens", "tokens moved back before their program needed them"),
    "returns": ("returns", "programs back from a tool"),
    "returned_tokens": ("returned_tokens", "tokens of context they came back to"),
    "hit_tokens": ("hit_tokens", "of those, tokens still in the radix tree"),
    "recomputed_tokens": ("recomputed_tokens", "of those, tokens computed again"),
    "recomputed_by_choice_tokens": ("recomputed_by_choice_tokens", "of those, tokens we had chosen to discard"),
    "yielded_leases": ("yielded_leases", "locks given up to what runs or waits"),
    "expired_leases": ("expired_leases", "locks that reached their end"),
}  # our name, after astraea_: the keeper's total, help


class Metrics:
    """What the keeper has counted, told to Prometheus now and then. No program is a label: there are too many."""

    def __init__(self, kv_pool: Any) -> None:
        from prometheus_client import Counter, Gauge  # SGLang sets up its directory before the scheduler starts

        self._counters = {total: Counter(f"astraea_{name}", text) for name, (total, text) in COUNTERS.items()}
        self._swapped = Counter("astraea_swapped_bytes", "KV copied to the host because a program paused")
        self._gauges = {
            name: Gauge(f"astraea_{name}", text, multiprocess_mode="mostrecent")
            for name, text in (
                ("paused_programs", "programs that wait for a tool"),
                ("leased_tokens", "KV tokens locked for them"),
                ("return_hit_rate", "share of its context a program back from a tool has found, since the start"),
            )
        }
        self._told: dict[str, float] = {}
        size = kv_pool.get_kv_size_bytes()  # of keys and values, or both together
        self._next, self._token_bytes = 0.0, (sum(size) if isinstance(size, tuple) else size) / kv_pool.size

    def export(self, keeper: Keeper, now: float) -> None:
        """Tell what has been counted since the last time, at most every EVERY seconds."""
        if now < self._next:
            return
        self._next = now + EVERY
        totals = keeper.decisions.totals
        for total, counter in self._counters.items():
            counter.inc(self._since(total, totals[total]))
        self._swapped.inc(self._since("swapped_tokens", totals["swapped_tokens"]) * self._token_bytes)
        self._gauges["paused_programs"].set(len(keeper.holdings))
        self._gauges["leased_tokens"].set(keeper.leases.tokens)
        self._gauges["return_hit_rate"].set(totals["hit_tokens"] / max(1, totals["returned_tokens"]))

    def _since(self, total: str, value: float) -> float:
        before, self._told[total] = self._told.get(total, 0.0), value
        return value - before
