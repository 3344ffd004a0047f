"""Which leaf of the radix tree is evicted first? A key for each, and a queue that does not sort them all every time."""

import heapq
from typing import Any

from sglang.srt.mem_cache.evict_policy import EvictionStrategy
from sglang.srt.mem_cache.unified_cache.components import FullComponent

RERANK = 5.0  # seconds


class RankedFull(FullComponent):
    """Device eviction from a queue that outlives a walk, where SGLang sorts all leaves anew whenever memory is short.

    A leaf is offered when its path ends, is unlocked, or is wanted later than before. Its key is worked out again when
    its turn comes; what was offered nowhere is found when the queue is made anew, every RERANK seconds or when empty.
    """

    tree_core: Any
    ranked = False  # else it is SGLang's own
    _made = -1
    _queue: list[tuple[Any, Any]]

    def rank(self) -> None:
        """From now on leaves are queued."""
        self.ranked, self._queue = True, []
        self._ensure_eviction_strategy()

    def offer(self, leaf: Any) -> None:
        """The key of `leaf` may be smaller than when it was queued, or it is new."""
        if self.ranked and leaf in self.tree_core.evictable_device_leaves:
            heapq.heappush(self._queue, (self._key(leaf), leaf))

    def _key(self, leaf: Any) -> Any:
        return self.tree_core.eviction_strategy.get_priority(leaf)

    def _remake(self) -> None:
        self._queue = [(self._key(leaf), leaf) for leaf in self.tree_core.evictable_device_leaves]
        heapq.heapify(self._queue)
        self._made, self._fresh = self.tree_core.epoch, True

    def _evict_device_start(self, request_cnt: int) -> None:
        if not self.ranked:
            return super()._evict_device_start(request_cnt)
        self._evict_device_request_cnt, self._evict_device_last_node, self._fresh = request_cnt, None, False
        if self._made != self.tree_core.epoch or len(self._queue) > 64 + 2 * len(
            self.tree_core.evictable_device_leaves
        ):
            self._remake()

    def _evict_device_next_node(self, tracker: Any, device_frees: Any, host_frees: Any, cache_actions: Any) -> Any:
        if not self.ranked:
            return super()._evict_device_next_node(tracker, device_frees, host_frees, cache_actions)
        leaves, last = self.tree_core.evictable_device_leaves, self._evict_device_last_node
        if last is not None:
            self.offer(last.parent)
        self._evict_device_last_node = None
        while tracker[self.component_type] < self._evict_device_request_cnt:
            if not self._queue:
                if self._fresh:
                    return None
                self._remake()
                continue
            old, leaf = heapq.heappop(self._queue)
            if leaf not in leaves:
                continue
            if (key := self._key(leaf)) > old:
                heapq.heappush(self._queue, (key, leaf))
                continue
            self._evict_device_last_node = leaf
            return leaf.id
        return None

    def _evict_device_end(self) -> None:
        if not self.ranked:
            return super()._evict_device_end()
        if self._evict_device_last_node is not None:
            self.offer(self._evict_device_last_node.parent)


class NextUse(EvictionStrategy):
    """Which leaf is evicted first? What nobody will use, then what is wanted latest for the work that it saves.

    Smallest first: leaves of no live program by recency; programs' by falling (time to the next use / cost of a token's
    refill); prefixes that several programs have used by recency.
    """

    def __init__(self, engine: Any) -> None:
        self._residency, self._table = engine.residency, engine.table

    def get_priority(self, node: Any) -> tuple[int, float, float]:
        """The key of a leaf (smallest first)."""
        owners = self._residency.ending.get(node.id)
        if owners:
            now, costs = self._table.now, self._table.costs
            back = min(program.back for program in owners.values())
            refill = costs.copy if node.backuped else costs.prefill
            return (1, -max(0.0, back - now) / refill, node.last_access_time)
        return (2 if node.id in self._residency.shared else 0, 0.0, node.last_access_time)
