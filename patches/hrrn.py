"""SGLang's own hrrn with its clock put right, to compare with.

hrrn ages a waiting request by the prompt tokens computed since it came. SGLang 0.5.23 counts more than those: a batch
that goes on to decode keeps the `extend_num_tokens` of its prefill, which Scheduler.run_batch adds with every step, and
in a mixed batch the decoded tokens count, too.
"""

from typing import Any

from astraea_sglang.patches.seams import Seam

_SRT = "sglang.srt."
_BATCH = _SRT + "managers.schedule_batch.ScheduleBatch."
_MODE = _SRT + "model_executor.forward_batch_info.ForwardMode."
SEAMS = (
    Seam(_SRT + "managers.scheduler.Scheduler.run_batch", "adds to processed_tokens_counter", ("self", "batch")),
    Seam(_SRT + "managers.schedule_policy.SchedulePolicy._sort_by_hrrn", "ages by it", (
        "waiting_queue", "temporary_deprioritized", "processed_tokens",
    )),
    Seam(_BATCH + "prepare_for_decode", "keeps extend_num_tokens", ("self",)),
    Seam(_BATCH + "mix_with_running", "adds one for each row that decodes", ("self", "running_batch")),
    Seam(_MODE + "is_decode", "tells such a step", ("self",)),
    Seam(_MODE + "is_mixed", "and such a batch", ("self",)),
)  # fmt: skip


def correct(scheduler: Any) -> None:
    """From now on `scheduler.processed_tokens_counter` counts prompt tokens only: call it before the event loop."""
    run_batch = scheduler.run_batch

    def corrected(batch: Any, *args: Any, **kwargs: Any) -> Any:
        if batch.forward_mode.is_decode():
            batch.extend_num_tokens = None  # left from its prefill; nobody reads it in a decode step
        elif batch.forward_mode.is_mixed():
            scheduler.processed_tokens_counter -= len(batch.decoding_reqs)
        return run_batch(batch, *args, **kwargs)

    scheduler.run_batch = corrected
