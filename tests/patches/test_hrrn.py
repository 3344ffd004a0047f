"""SGLang's own run_batch, up to the line behind its counter: there a hook of SGLang's own stops it."""

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from astraea_sglang.patches.hrrn import SEAMS, correct
from astraea_sglang.patches.seams import drift

PROMPT, STEPS = 24, 7


class Counted(Exception):
    """The batch has been counted; what follows would need a model."""


def stop(batch: Any) -> None:
    raise Counted


class Counting(Scheduler):
    """Stands for a Scheduler that has been built: what run_batch reads before its hook, and nothing else."""

    def __init__(self) -> None:
        self.metrics_reporter: Any = SimpleNamespace(record_scheduler_active=lambda nanoseconds: None)
        self.scripted_scheduler_hook: Any = SimpleNamespace(on_run_batch=stop)
        self.scheduler_stage_metrics: Any = None
        self.processed_tokens_counter = self.forward_ct = 0
        self._sched_idled = False


def run(scheduler: Scheduler, batch: ScheduleBatch) -> None:
    with pytest.raises(Counted):
        scheduler.run_batch(batch)


def served(*, corrected: bool) -> int:
    """What does the counter show after a prompt of PROMPT tokens and STEPS decode steps of the same batch?"""
    scheduler = Counting()
    if corrected:
        correct(scheduler)
    batch = ScheduleBatch(reqs=[], forward_mode=ForwardMode.EXTEND)
    batch.extend_num_tokens = PROMPT
    run(scheduler, batch)
    batch.forward_mode = ForwardMode.DECODE  # all that prepare_for_decode does to what is counted
    for _ in range(STEPS):
        run(scheduler, batch)
    return scheduler.processed_tokens_counter


def test_as_shipped_every_decode_step_counts_the_prompt_again():
    assert served(corrected=False) == PROMPT * (1 + STEPS)


def test_corrected_decode_steps_no_longer_count():
    assert served(corrected=True) == PROMPT


def test_of_a_mixed_batch_only_the_prompt_tokens_count():
    scheduler = Counting()
    correct(scheduler)
    rows: Any = [object(), object()]
    batch = ScheduleBatch(reqs=[], forward_mode=ForwardMode.MIXED)
    batch.extend_num_tokens, batch.decoding_reqs = PROMPT + len(rows), rows
    run(scheduler, batch)
    assert scheduler.processed_tokens_counter == PROMPT


def waiting(rid: str, arrived: int) -> Any:
    return SimpleNamespace(
        rid=rid, origin_input_ids=[0] * 10, num_matched_prefix_tokens=0, arrival_processed_tokens=arrived
    )


@pytest.mark.parametrize(("corrected", "first"), [(False, "waits through steps"), (True, "comes after them")])
def test_steps_that_compute_no_prompt_age_nobody_once_corrected(corrected, first):
    counter = served(corrected=corrected)
    queue = [waiting("comes after them", counter), waiting("waits through steps", PROMPT)]
    SchedulePolicy._sort_by_hrrn(queue, set(), counter)
    assert queue[0].rid == first  # of equals the name decides


def test_the_installed_sglang_has_what_is_corrected():
    assert drift(SEAMS) is None
