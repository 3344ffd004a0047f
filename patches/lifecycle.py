"""What happens to a request in SGLang's scheduler, told to the program table."""

import functools
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.runtime_context import get_parallel

from astraea_sglang.actions import KvAction, Outcome
from astraea_sglang.config import Config
from astraea_sglang.costs import StepCosts
from astraea_sglang.hints import Hints
from astraea_sglang.keeper import Keeper
from astraea_sglang.obey import carry_out, obey
from astraea_sglang.patches.answers import recognised, tell
from astraea_sglang.patches.boundary import said, tools_called
from astraea_sglang.patches.intake import actions_of, hints_of
from astraea_sglang.patches.metrics import Metrics
from astraea_sglang.patches.radix import AstraeaRadixCache
from astraea_sglang.patches.residency import Residency
from astraea_sglang.program import Program, Segment
from astraea_sglang.table import ProgramTable

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Engine:
    """What we keep on a Scheduler, as `scheduler.astraea`: absent unless the policy is ours."""

    table: ProgramTable
    residency: Residency
    keeper: Keeper | None = None  # where the radix tree is ours, and can keep and free paths
    steps: StepCosts = field(default_factory=StepCosts)
    launched: deque[float] = field(default_factory=lambda: deque(maxlen=8))  # perf_counter seconds; of steps in flight
    stepped: float = 0.0  # perf_counter seconds: when the last step was over
    ticked: float = 0.0  # monotonic seconds: when the last tick was sent
    blocked: Set[str] = frozenset()  # rids that the gate holds back in this pass
    adder: Any = None  # the PrefillAdder that does so, made once
    memory: Any = None  # memory.Memory on the leader, once it polls
    metrics: Any = None  # metrics.Metrics, with --enable-metrics
    remembers: bool = False  # the history of earlier runs has been loaded
    faults: set[str] = field(default_factory=set)

    def fault(self, where: str) -> None:
        """Count an exception of ours; log the first at each place. The scheduler must outlive our mistakes."""
        self.table.counts["faults"] += 1
        if where not in self.faults:
            self.faults.add(where)
            logger.exception(
                "astraea: %s failed; SGLang goes on without it (further failures there are only counted)", where
            )

    def gone(self, program: Program) -> None:
        """A program is over, and no longer known."""
        if self.keeper is not None:
            self.keeper.ended(program)
        self.residency.forget(program)


def softly(hook: Callable[..., None]) -> Callable[..., None]:
    """Make `hook(engine, scheduler, result, ...)` an AFTER hook on a Scheduler method: off without us, never fatal."""

    @functools.wraps(hook)
    def wrapper(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        engine = getattr(scheduler, "astraea", None)
        if engine is not None:
            try:
                hook(engine, scheduler, result, *args, **kwargs)
            except Exception:
                engine.fault(hook.__name__)

    return wrapper


def attach(result: None, scheduler: Any) -> None:
    """AFTER Scheduler.init_schedule_policy: with our policy the scheduler gets a program table."""
    if not getattr(scheduler.policy, "is_astraea", False):
        return
    config = Config.from_environment(os.environ)
    table = ProgramTable(config)
    scheduler.astraea = scheduler.policy.engine = engine = Engine(table, Residency(table))
    scheduler.policy.max_running = scheduler.max_running_requests
    tree = scheduler.tree_cache
    if isinstance(tree, AstraeaRadixCache):
        if tree.retains:
            engine.keeper = Keeper(config, table, tree, tree.token_to_kv_pool_allocator.size)
            tree.copied = engine.steps.copied
            if scheduler.metrics_reporter.enable_metrics and get_parallel().attn_tp_rank == 0:
                engine.metrics = Metrics(tree.token_to_kv_pool_allocator.get_kvcache())
        tree.attach(engine, ranked=config.retention == "adaptive")
    if engine.keeper is None:
        logger.warning("astraea: a %s keeps KV its own way; --astraea-retention has no effect", type(tree).__name__)
    table.gone = engine.gone
    logger.info("astraea: scheduling agent programs (--schedule-policy astraea): %s", config)


@softly
def queued(engine: Engine, scheduler: Any, result: None, req: Any, is_retracted: bool = False) -> None:
    """AFTER Scheduler._add_request_to_queue: the segment arrives, or waits again after retraction or preemption."""
    segment = getattr(req, "astraea", None)
    if segment is not None:
        engine.table.requeue(segment)
    elif scheduler.waiting_queue and scheduler.waiting_queue[-1] is req:  # SGLang may have turned it away
        hints, arrived, tenant = hints_of(req, engine.table.structures)
        engine.table.advance(arrived)
        most = getattr(req.sampling_params, "max_new_tokens", 0) or 0
        prompt = req.origin_input_ids
        segment = req.astraea = engine.table.arrive(
            req.rid,
            hints,
            len(prompt),
            most,
            tier=_tier(req, hints, scheduler.schedule_low_priority_values_first),
            prompt=prompt,
            space=f"{hints.owner}\0{tenant}\0{req.extra_key or ''}",
        )
        if hints.program_id is None and not segment.program.anonymous:
            recognised(req, segment.program.id)
        segment.program.tenant = segment.program.tenant or tenant
        if engine.keeper is not None:
            engine.keeper.returned(segment.program)
        tell(req, _obeyed(engine.keeper, segment.program, actions_of(req)))


@softly
def admitted(engine: Engine, scheduler: Any, result: tuple[Any, Any], *args: Any, **kwargs: Any) -> None:
    """AFTER Scheduler._get_new_batch_prefill_raw: the segments of a new prefill batch start, or go on with a chunk."""
    batch, _ = result
    if batch is None:
        return
    decoding = {id(req) for req in batch.decoding_reqs or ()}  # rows that a mixed batch only carries along
    for req in batch.reqs:
        segment = getattr(req, "astraea", None)
        if segment is not None and id(req) not in decoding:
            if engine.keeper is not None and not segment.running:
                wait = engine.table.now - segment.arrived
                engine.keeper.resumed(segment.program, segment.known, req.prefix_len, wait)
            engine.table.start(segment, req.extend_end - req.prefix_len)


def launched(scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE Scheduler.run_batch: remember when the step began."""
    engine = getattr(scheduler, "astraea", None)
    if engine is not None:
        engine.launched.append(time.perf_counter())


@softly
def stepped(engine: Engine, scheduler: Any, result: None, batch: Any, outcome: Any) -> None:
    """AFTER Scheduler.process_batch_result: tokens are attained, segments finish, the step's cost is measured."""
    _measure(engine, batch)
    for req in batch.reqs:
        segment = getattr(req, "astraea", None)
        if segment is None:
            continue
        engine.table.serve(segment, len(req.output_ids))
        if req.finished():
            req.astraea = None  # an overlapped batch may show a finished request once more
            try:
                _finish(engine, scheduler.tree_cache, segment, req, isinstance(req.finished_reason, FINISH_ABORT))
            except Exception:  # the others of the batch still are to be heard of
                engine.fault("end of a segment")


@softly
def dropped(engine: Engine, scheduler: Any, result: None, abort_req: Any, req: Any) -> None:
    """AFTER Scheduler.send_abort_output: a segment was aborted while it waited, or found no memory even alone."""
    if getattr(req, "astraea", None) is not None:
        segment, req.astraea = req.astraea, None
        _finish(engine, scheduler.tree_cache, segment, req, True)


def _finish(engine: Engine, tree: Any, segment: Segment, req: Any, aborted: bool) -> None:
    program = segment.program
    output = said(req)
    tools = None if aborted else tools_called(req, output, segment.hints)
    if isinstance(tree, AstraeaRadixCache) and segment.running and (tools or not program.anonymous):
        tree.ends(program, req.last_node)
    engine.table.finish(segment, aborted=aborted, output=output, tools=tools)
    if isinstance(tree, AstraeaRadixCache):  # an aborted segment may leave less than it computed
        engine.table.evicted(program, tree.remains(program))
    if engine.keeper is not None and program.idle_since is not None:
        engine.keeper.paused(program)
        carry_out(engine.keeper, program)


def _obeyed(keeper: Keeper | None, program: Program, actions: list[KvAction]) -> list[Outcome]:
    """What becomes of the actions that a segment brings? They stand until the next segment comes."""
    program.asked, program.kept_until = None, 0.0
    if keeper is None or program.anonymous:
        why = "this radix cache keeps KV its own way" if keeper is None else "the request names no program"
        return [Outcome(each.id, each.kind, "rejected", why) for each in actions]
    return [obey(keeper, program, each) for each in actions]


def _tier(req: Any, hints: Hints, low_first: bool) -> int:
    """In which strict tier is a request? 0 first, and as in SGLang, one without a priority comes last."""
    if req.priority is not None:
        return req.priority if low_first else -req.priority
    return sys.maxsize if hints.priority is None else -hints.priority


def _measure(engine: Engine, batch: Any) -> None:
    # A step lasts from its launch to its result, but with overlapped scheduling not before the last one was over.
    now = time.perf_counter()
    if engine.launched:
        seconds = now - max(engine.launched.popleft(), engine.stepped)
        if batch.forward_mode.is_decode():
            engine.steps.decoded(len(batch.reqs), int(batch.seq_lens_cpu.sum()), seconds)
        elif batch.forward_mode.is_extend() and not batch.decoding_reqs:
            engine.steps.prefilled(batch.extend_num_tokens or 0, seconds)
    engine.stepped = now
