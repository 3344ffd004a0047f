"""SGLang's schedule policy, with the waiting queue in the order the program table gives."""

from typing import Any

from sglang.srt.managers.schedule_policy import (
    WAITING_QUEUE_PREFIX_MATCH_MAX,
    CacheAgnosticPolicy,
    SchedulePolicy,
)
from sglang.srt.mem_cache.common import match_kv_cache

from astraea_sglang.patches.args import POLICY


class AstraeaSchedulePolicy(SchedulePolicy):
    """`--schedule-policy astraea`; with any other policy it is the SchedulePolicy it replaces."""

    is_astraea = False
    engine: Any = None

    def _validate_and_adjust_policy(self, policy: str, tree_cache: Any) -> Any:
        if policy != POLICY:
            return super()._validate_and_adjust_policy(policy, tree_cache)
        self.is_astraea = True
        return CacheAgnosticPolicy.FCFS  # a known member, so that SGLang's comparisons elsewhere stay valid

    def calc_priority(self, waiting_queue: list[Any], running_batch: Any = None, processed_tokens: int = 0) -> None:
        """Sort the queue in place. A failure of ours leaves it as it is, which is SGLang's first come, first served."""
        if self.engine is not None:
            try:
                self._sort_by_program(waiting_queue)
                self._touch_waiting_prefixes(self.policy, waiting_queue)
                return
            except Exception:
                self.engine.fault("order")
        super().calc_priority(waiting_queue, running_batch, processed_tokens)

    def _sort_by_program(self, waiting_queue: list[Any]) -> None:
        # Matching costs a tree walk each and refreshes recency: the head last, as it must lose its prefix last. Beyond
        # SGLang's own bound for lpm the rest keeps what its last match said.
        for req in reversed(waiting_queue[:WAITING_QUEUE_PREFIX_MATCH_MAX]):
            match_kv_cache(req, self.tree_cache)
        rids = self.engine.table.rank(
            (req.astraea, max(0, len(req.origin_input_ids) + len(req.output_ids) - req.num_matched_prefix_tokens))
            for req in waiting_queue
        )
        position = {rid: i for i, rid in enumerate(rids)}
        waiting_queue.sort(key=lambda req: position[req.rid])
