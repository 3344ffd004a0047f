"""SGLang's schedule policy, with the waiting queue in the order the program table gives."""

from collections.abc import Callable
from typing import Any

from sglang.srt.managers.schedule_policy import (
    CLIP_MAX_NEW_TOKENS,
    WAITING_QUEUE_PREFIX_MATCH_MAX,
    AddReqResult,
    CacheAgnosticPolicy,
    PrefillAdder,
    SchedulePolicy,
)
from sglang.srt.mem_cache.common import match_kv_cache

from astraea_sglang.patches.args import POLICY
from astraea_sglang.table import Pool


class AstraeaSchedulePolicy(SchedulePolicy):
    """`--schedule-policy astraea`; with any other policy it is the SchedulePolicy it replaces."""

    is_astraea = False
    engine: Any = None
    max_running = 1
    _turn = 0  # where in the queue the next turn of matches begins

    def _validate_and_adjust_policy(self, policy: str, tree_cache: Any) -> Any:
        if policy != POLICY:
            return super()._validate_and_adjust_policy(policy, tree_cache)
        self.is_astraea = True
        return CacheAgnosticPolicy.FCFS  # a known member, so that SGLang's comparisons elsewhere stay valid

    def calc_priority(self, waiting_queue: list[Any], running_batch: Any = None, processed_tokens: int = 0) -> None:
        """Sort the queue in place: what may start first, in our order. A failure of ours leaves SGLang's own order."""
        if self.engine is not None:
            try:
                self._sort_by_program(waiting_queue)
                self._touch_waiting_prefixes(self.policy, waiting_queue)
                return
            except Exception:
                self.engine.fault("order")
                self.engine.blocked = frozenset()
        super().calc_priority(waiting_queue, running_batch, processed_tokens)

    def _sort_by_program(self, waiting_queue: list[Any]) -> None:
        for req in reversed(self._due_a_match(waiting_queue)):  # matching refreshes recency: the head must keep longest
            match_kv_cache(req, self.tree_cache)
            req.astraea.matched = True
        residents = [(req.astraea, req.num_matched_prefix_tokens) for req in waiting_queue]
        plan = self.engine.table.plan(residents, Pool(pool_tokens(self.tree_cache), self.max_running))
        self.engine.blocked = plan.blocked
        last = len(plan.order)
        position = {rid: i + last * (rid in plan.blocked) for i, rid in enumerate(plan.order)}
        waiting_queue.sort(key=lambda req: position[req.rid])
        keeper = self.engine.keeper
        if waiting_queue and keeper is not None and keeper.leases.tokens:  # a chunk may go on with nobody waiting
            self._make_room(waiting_queue[0])

    def _make_room(self, head: Any) -> None:
        """Locks yield where the next segment could not run beside them even alone."""
        most = min(head.sampling_params.max_new_tokens or 0, CLIP_MAX_NEW_TOKENS)
        pool = self.tree_cache.token_to_kv_pool_allocator.size
        leases = self.engine.keeper.leases
        own = leases.held.get(head.astraea.program.key)
        others = leases.tokens - (own.tokens if own else 0)
        short = head.astraea.length + most + self.tree_cache.page_size + others - pool
        if short > 0:
            self.engine.keeper.give_way(short, head.astraea.program.key)

    def _due_a_match(self, waiting_queue: list[Any]) -> list[Any]:
        """Whose prefix is looked up in this pass? A tree walk each, so no more than lpm's before SGLang gives it up.

        Half of them at the head of the queue; the others are newcomers, and then the rest in turn.
        """
        half = WAITING_QUEUE_PREFIX_MATCH_MAX // 2
        head, rest = waiting_queue[:half], waiting_queue[half:]
        others = [req for req in rest if not req.astraea.matched][:half]
        if self._turn >= len(rest):
            self._turn = 0
        turn = rest[self._turn : self._turn + half - len(others)]
        self._turn += len(turn)
        return head + others + turn


def pool_tokens(tree_cache: Any) -> int:
    """How many tokens do the KV pools hold, on the device and on the host?"""
    controller = getattr(tree_cache, "cache_controller", None)
    host = controller.mem_pool_host.size if controller is not None else 0
    return tree_cache.token_to_kv_pool_allocator.size + host


def gated_adder(original: Callable[[Any], type[PrefillAdder]], scheduler: Any) -> type[PrefillAdder]:
    """AROUND Scheduler.get_prefill_adder_class: an adder that stops at the first segment the gate has blocked.

    OTHER ends the pass; NO_TOKEN would shut admission until some request leaves.
    """
    engine = getattr(scheduler, "astraea", None)
    if engine is None:
        return original(scheduler)
    if engine.adder is None:

        class GatedAdder(original(scheduler)):
            def add_one_req(self, req: Any, *args: Any, **kwargs: Any) -> AddReqResult:
                if req.rid in engine.blocked:
                    return AddReqResult.OTHER
                return super().add_one_req(req, *args, **kwargs)

        engine.adder = GatedAdder
    return engine.adder
