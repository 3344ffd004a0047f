"""Everything around a scheduler under virtual time: clients that send a plan's segments, tools, and the device."""

import heapq
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
from sglang.srt.managers.kv_hints import KvHintAction, KvHintsEnvelope
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.sampling.sampling_params import SamplingParams

from astraea_sglang.bench.declare import hints
from astraea_sglang.bench.device import Device
from astraea_sglang.bench.figures import SegmentRun
from astraea_sglang.bench.workloads import ProgramPlan
from astraea_sglang.errors import AstraeaError
from astraea_sglang.hints import payload
from astraea_sglang.patches.intake import ACTION, ARRIVED

EOS = 2
SHARED = 10  # first token id of system prompts: one id per program class
OWN = 1000  # first token id of programs: one id per program, so that no two share more than their class does
VOCABULARY = 131_072  # so a plan may have 130,000 programs
START = 1000.0  # seconds: SGLang takes a time of 0 for unset
STALL = 0.01  # seconds that pass when requests wait and none can start
PATIENCE = 600.0  # seconds of stalling after which no order of ours or SGLang's will ever start them
WATCH = 0.25  # real seconds between two reports


@dataclass(slots=True)
class _Live:
    """A segment in the engine."""

    number: int  # of its program in the plan
    index: int
    arrived: float
    prompt: int  # tokens, as in SegmentRun
    known: int
    cached: int | None = None
    computed: int = 0

    @property
    def token(self) -> int:
        return OWN + self.number


class Peer:
    """Stands where SGLang's scheduler has its request receiver, its output streamer, its tokenizer and its device."""

    scheduler: Any  # whose neighbour it is: set before the event loop runs

    def __init__(
        self, plans: Sequence[ProgramPlan], device: Device, hints: str, watch: Callable[[float, int], None]
    ) -> None:
        self.plans, self.device, self.hints, self.watch = plans, device, hints, watch
        self.now = START
        self.segments: list[SegmentRun] = []
        self.bad: list[str] = []
        self.passes = self.stalls = 0
        self.unfinished = len(plans)
        self._prompts = [list(plan.prompts()) for plan in plans]
        self._coming = [(START + plan.arrival_s, number, 0) for number, plan in enumerate(plans)]
        heapq.heapify(self._coming)
        self._live: dict[str, _Live] = {}
        classes = sorted({plan.program_class for plan in plans})
        self._shared_token = {name: SHARED + i for i, name in enumerate(classes)}
        self._shared_known: set[str] = set()  # classes whose system prompt was computed once
        self._passes_seen = 0
        self._stalled_since: float | None = None
        self._real_clock = time.perf_counter
        self._watched = self._real_clock()

    @property
    def elapsed(self) -> float:
        """How many seconds were emulated?"""
        return self.now - START

    # --- the request receiver: called once a pass ---

    def recv_requests(self, local_reqs: Sequence[Any]) -> list[Any]:
        """Which messages arrive before this pass? What rank 0 polled, and every segment that is due."""
        if self.scheduler.is_fully_idle():
            if not self._coming:
                self.scheduler.gracefully_exit = True
                return list(local_reqs)
            self.now = max(self.now, self._coming[0][0])
        elif self.passes == self._passes_seen:
            self._stall()
        else:
            self._stalled_since = None
        self._passes_seen = self.passes
        if self._real_clock() - self._watched > WATCH:
            self._watched = self._real_clock()
            self.watch(self.elapsed, len(self.plans) - self.unfinished)
        due = []
        while self._coming and self._coming[0][0] <= self.now:
            due.append(self.request(*heapq.heappop(self._coming)))
        return [*local_reqs, *due]

    def _stall(self) -> None:
        self.stalls += 1
        self._stalled_since = self._stalled_since or self.now
        if self.now - self._stalled_since > PATIENCE:
            raise AstraeaError(f"{len(self.scheduler.waiting_queue)} segments wait and none starts on an empty engine")
        self.now += STALL

    def request(self, arrived: float, number: int, index: int) -> TokenizedGenerateReqInput:
        """The segment `index` of the plan's program `number`, as SGLang's tokenizer would send it."""
        plan, prompt = self.plans[number], self._prompts[number][index]
        if index:
            known = self._prompts[number][index - 1] + plan.segments[index - 1].output - 1
        else:
            known = plan.shared_prefix if plan.program_class in self._shared_known else 0
        rid = f"{plan.id}.{index}"
        live = self._live[rid] = _Live(number, index, arrived, prompt, known)
        told = payload(hints(plan, index, self.hints)) | {ARRIVED: arrived}
        action = KvHintAction(action_id="astraea", action_type=ACTION, action_version="1", payload=told)
        # One token repeated: the radix tree compares what it would compare, and a prompt costs nothing to make.
        shared = array("q", [self._shared_token[plan.program_class]]) * plan.shared_prefix
        sampling_params = SamplingParams(max_new_tokens=plan.max_new_tokens, temperature=0.0)
        sampling_params.normalize(None)
        return TokenizedGenerateReqInput(
            rid=rid,
            input_text=None,
            input_ids=shared + array("q", [live.token]) * (prompt - plan.shared_prefix),
            input_embeds=None,
            mm_inputs=None,
            token_type_ids=None,
            sampling_params=sampling_params,
            return_logprob=False,
            logprob_start_len=-1,
            top_logprobs_num=0,
            token_ids_logprob=None,
            stream=False,
            session_id=plan.id,
            kv_hints=KvHintsEnvelope(protocol_version="1", message_id="astraea", actions=[action]),
        )

    # --- the device ---

    def forward(self, batch: Any, *args: Any, **kwargs: Any) -> GenerationBatchResult:
        """Run one pass: time goes on by what it costs, and every row gets a token, its last one being EOS."""
        self.passes += 1
        rows, prefills = len(batch.reqs), []
        if batch.forward_mode.is_extend():
            rows = len(batch.decoding_reqs or ())  # at the end of a mixed batch
            for req, cached, tokens in zip(
                batch.reqs[: len(batch.reqs) - rows], batch.prefix_lens, batch.extend_lens, strict=False
            ):
                prefills.append((tokens, cached + tokens))
                live = self._live[req.rid]
                live.computed += tokens
                if live.cached is None:
                    live.cached = min(cached, live.known)
        read = int(batch.seq_lens_cpu[len(batch.reqs) - rows :].sum()) if rows else 0
        self.now += self.device.step(prefills, rows, read)
        tokens = torch.tensor([self._next_token(req) for req in batch.reqs], dtype=torch.int64)
        return GenerationBatchResult(
            logits_output=LogitsProcessorOutput(next_token_logits=None), next_token_ids=tokens, can_run_cuda_graph=False
        )

    def _next_token(self, req: Any) -> int:
        live = self._live[req.rid]
        last = len(req.output_ids) + 1 == self.plans[live.number].segments[live.index].output
        return EOS if last else live.token

    # --- the output streamer, and the tools that follow ---

    def stream_output(self, reqs: Sequence[Any], return_logprob: bool, skip_req: Any = None) -> None:
        """Output of a pass: a finished segment ends here, its program's next one comes when the tool is done."""
        for req in reqs:
            if req.finished() and req.rid in self._live:
                self._finish(req, self._live.pop(req.rid))

    def send_output(self, output: Any, recv_req: Any = None) -> None:
        """What SGLang tells its tokenizer outside the stream: an abort. None is planned."""
        self.bad.append(repr(output)[:200])

    def _finish(self, req: Any, live: _Live) -> None:
        plan = self.plans[live.number]
        segment = plan.segments[live.index]
        if len(req.output_ids) != segment.output or req.output_ids[-1] != EOS:
            self.bad.append(f"{req.rid} made {len(req.output_ids)} tokens of {segment.output}: {req.finished_reason}")
        if plan.shared_prefix:
            self._shared_known.add(plan.program_class)
        tokens = live.prompt, segment.output, live.known, live.cached or 0, live.computed
        self.segments.append(SegmentRun(plan.id, live.index, live.arrived - START, self.elapsed, *tokens))
        if live.index + 1 < len(plan.segments):
            heapq.heappush(self._coming, (self.now + segment.tool_s, live.number, live.index + 1))
        else:
            self.unfinished -= 1
