"""A whole real server on a device that is not there: with ASTRAEA_EMULATE=DEVICE a forward pass computes nothing.

It sleeps until the emulated device would be done, then every request gets a token: the last one of its prompt again,
and an end-of-sequence token as its last. How many it gets is in `sampling_params.custom_params`:
{"emulated_tokens": 40}; without it, as many as `max_new_tokens` allows. Only the device reads it: the scheduler knows
of a request's length what it would know of a real one, its `max_new_tokens`.
"""

import logging
import os
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from astraea_sglang.bench.device import Device, load
from astraea_sglang.errors import ConfigError, HintError, SeamError
from astraea_sglang.patches import batches
from astraea_sglang.patches.args import one_line
from astraea_sglang.patches.seams import Seam, drift
from astraea_sglang.serving import has_accelerator

VARIABLE = "ASTRAEA_EMULATE"
TOKENS = "emulated_tokens"
GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")
LATE = 5.0  # seconds between two passes that are caught up with; after more, an operator's pause perhaps, time goes on
log = logging.getLogger(__name__)

_ARGS = "sglang.srt.server_args.ServerArgs."
_WORKER = "sglang.srt.managers.tp_worker.TpModelWorker."
_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager."
SEAMS = (
    Seam(_ARGS + "resolve_once", "refuse what cannot be emulated", ("self",), "before", "emulate:check"),
    Seam(_WORKER + "forward_batch_generation", "sleep instead", ("self", "batch"), "replace", "emulate:forward"),
    Seam(_WORKER + "set_hicache_consumer", "as every pass does", ("self", "consumer_index")),
    Seam(_MANAGER + "generate_request", "refuse some", ("self", "obj", "request"), "before", "emulate:admit"),
    *batches.SEAMS,
)


def install() -> None:
    """Register the hooks of SEAMS, in every process of a server that emulates. SystemExit when SGLang differs."""
    if (problem := drift(SEAMS)) is not None:
        raise SystemExit(f"astraea: {problem}")
    for seam in SEAMS:
        if seam.hook:
            HookRegistry.register(seam.target, seam.hook_function(), HookType(seam.kind))


def check(server_args: Any) -> None:
    """BEFORE ServerArgs.resolve_once: refuse an unknown device and settings that need a real one, before any spawning.

    Unless another is asked for, prompts are cut into chunks as large as the device's.
    """
    if getattr(server_args, "_resolution_finished", False):
        return
    with one_line():
        chosen = _chosen()
        if missing := [seam.target for seam in SEAMS if seam.hook and seam.target not in HookRegistry._patched]:
            raise SeamError(f"SGLang could not hook {missing[0]}; its log above says why")
        if has_accelerator():
            raise ConfigError(f"{VARIABLE} runs on the CPU, torch sees an accelerator; set CUDA_VISIBLE_DEVICES=")
        if not server_args.disable_overlap_schedule:
            raise ConfigError(f"{VARIABLE} emulates SGLang's plain scheduler loop; add --disable-overlap-schedule")
        unsupported = {
            f"--pp-size {server_args.pp_size}": server_args.pp_size > 1,
            f"--speculative-algorithm {server_args.speculative_algorithm}": server_args.speculative_algorithm,
            f"--disaggregation-mode {server_args.disaggregation_mode}": server_args.disaggregation_mode != "null",
            "--is-embedding": server_args.is_embedding,
        }
        for name, asked in unsupported.items():
            if asked:
                raise ConfigError(f"{name} cannot be emulated; leave it or {VARIABLE} out")
    if server_args.chunked_prefill_size is None:
        server_args.chunked_prefill_size = chosen.chunk_tokens


def admit(manager: Any, obj: Any, request: Any = None) -> None:
    """BEFORE TokenizerManager.generate_request: raises HintError (HTTP 400) for what the device has no answer to."""
    for name in ("return_logprob", "return_hidden_states"):
        if any(_each(getattr(obj, name, False))):
            raise HintError(f"{name} needs a model, and {VARIABLE} has none; leave it out")
    for params in _each(getattr(obj, "sampling_params", None)):
        if not isinstance(params, Mapping):
            continue
        if needs := [name for name in GRAMMARS if params.get(name)]:
            raise HintError(f"sampling_params.{needs[0]} needs a model, and {VARIABLE} has none; leave it out")
        custom = params.get("custom_params")
        if not isinstance(custom, Mapping) or TOKENS not in custom:
            continue
        if not isinstance(custom[TOKENS], int) or custom[TOKENS] < 1:
            raise HintError(f"custom_params.{TOKENS} is {custom[TOKENS]!r}; send a whole number, at least 1")
        if params.get("ignore_eos"):
            raise HintError(f"custom_params.{TOKENS} ends with an end-of-sequence token; leave ignore_eos out")


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def forward(worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """REPLACE TpModelWorker.forward_batch_generation: sleep, then a token for every request."""
    worker.set_hicache_consumer(batch.hicache_consumer_index)
    _running().run(batches.work(batch), went_on=not batch.after_idle_gap)
    return batches.result([next_token(req) for req in batch.reqs])


def next_token(req: Any) -> int:
    """Which token does a request get? The end of the sequence when it has its tokens, else its prompt's last again."""
    ends = req.eos_token_ids or set()
    custom = req.sampling_params.custom_params or {}
    if ends and len(req.output_ids) + 1 >= custom.get(TOKENS, req.sampling_params.max_new_tokens):
        return min(ends)
    filler = req.origin_input_ids[-1]
    return filler if filler not in ends else max(ends) + 1


class Sleeper:
    """An emulated device in real time, busy until `free` (seconds of the monotonic clock)."""

    def __init__(self, device: Device) -> None:
        self.device, self.free = device, 0.0

    def run(self, work: batches.Work, *, went_on: bool) -> None:
        """Sleep until the device has done `work`. `went_on`: the scheduler had a batch in its last pass, too."""
        self.free = ended(self.free, time.monotonic(), self.device.step(*work), went_on=went_on)
        time.sleep(max(0.0, self.free - time.monotonic()))


def ended(free: float, now: float, seconds: float, *, went_on: bool) -> float:
    """When does a pass of `seconds` end, if the device was busy until `free` and it is `now`?

    Of a scheduler that went straight on, the time since `free` is its own work and what the machine did besides. Its
    pass began at `free`: a slow machine is absorbed as long as it keeps up on average, as under virtual time.
    """
    late = now - free
    if not went_on:
        return max(now, free) + seconds
    if late > LATE:
        log.warning("the emulated device stood still for %.1f s: paused, or this machine is too slow", late)
        return now + seconds
    return free + seconds


@cache
def _running() -> Sleeper:
    return Sleeper(_chosen())


def _chosen() -> Device:
    try:
        return load(os.environ[VARIABLE])
    except ConfigError as error:
        raise ConfigError(str(error).replace("--device ", f"{VARIABLE}=")) from None
