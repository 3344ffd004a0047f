"""SGLang's own scheduler on a virtual clock: real queue, radix tree and batches, an emulated forward pass.

Four things stand where the world was: where requests come from, where output goes, what a forward pass does, and time.
SGLang keeps one live configuration per process, so one process replays one plan, once.
"""

import dataclasses
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels
from sglang.srt.observability import req_time_stats
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.runtime_context import SpawnRanks, publish
from sglang.srt.server_args import PortArgs, ServerArgs
from sglang.srt.utils.network import get_free_port_below_ephemeral

from astraea_sglang.bench.baselines import CORRECTED
from astraea_sglang.bench.clock import Clock, Event, Link
from astraea_sglang.bench.device import Device
from astraea_sglang.bench.figures import SegmentRun
from astraea_sglang.bench.plans import ProgramPlan
from astraea_sglang.bench.prompts import MOST
from astraea_sglang.errors import AstraeaError, SeamError
from astraea_sglang.patches import batches, hrrn
from astraea_sglang.patches.args import POLICY
from astraea_sglang.patches.peer import EOS, Peer
from astraea_sglang.patches.seams import Seam, drift

# A model just large enough to build: its weights are never used, its KV takes 64 bytes a token.
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32", "tie_word_embeddings": True,
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8,
    "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 1_048_576, "vocab_size": MOST,
    "bos_token_id": 1, "eos_token_id": EOS,
}  # fmt: skip
FLAGS: dict[str, Any] = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "random_seed": 0,
    "hicache_io_backend": "direct",
    "hicache_mem_layout": "layer_first",
    "watchdog_timeout": 1e6,  # seconds of virtual time, of which the wait for an arrival may take minutes
    "log_level": "error",
}

_SRT = "sglang.srt."
_SCHEDULER = _SRT + "managers.scheduler.Scheduler."
_PARTS = _SRT + "managers.scheduler_components."
_L2 = _SRT + "mem_cache.l2_transfer.L2TransferEngine."
SEAMS = (
    Seam(_SCHEDULER + "__init__", "build one in this process", ("self", "server_args", "port_args")),
    Seam(_SCHEDULER + "run_event_loop", "run it", ("self",)),
    Seam(_SCHEDULER + "is_fully_idle", "jump to the next arrival", ("self",)),
    Seam(_SCHEDULER + "init_ipc_channels", "leave out every other process", ("self", "port_args")),
    Seam(_PARTS + "ipc_channels.SchedulerIpcChannels", "stood in for"),
    Seam(_SCHEDULER + "init_request_receiver", "requests come from the plan", ("self",)),
    Seam(_SCHEDULER + "get_output_streamer_class", "output ends segments", ("self",)),
    Seam(_PARTS + "request_receiver.SchedulerRequestReceiver.recv_requests", "stood in for", ("self", "local_reqs")),
    Seam(_PARTS + "output_streamer.SchedulerOutputStreamer.stream_output", "stood in for", ("self", "reqs")),
    Seam(_PARTS + "output_sender.SenderWrapper.send_output", "stood in for", ("self", "output")),
    Seam(_SRT + "managers.tp_worker.TpModelWorker.forward_batch_generation", "stood in for", ("self", "batch")),
    Seam(_SRT + "managers.io_struct.TokenizedGenerateReqInput", "a request"),
    Seam(_SRT + "managers.io_struct.CloseSessionReqInput", "the end of a program"),
    Seam(_L2 + "submit_device_to_host", "copies to the host take time", ("self", "transfers")),
    Seam(_L2 + "submit_host_to_device", "and back", ("self", "transfers")),
    Seam(_SRT + "sampling.sampling_params.SamplingParams.normalize", "its parameters", ("self", "tokenizer")),
    *batches.SEAMS,
    *hrrn.SEAMS,
    Seam(_SRT + "observability.req_time_stats.monotonic_time", "time stamps of requests"),
    Seam(_SRT + "utils.network.get_free_port_below_ephemeral", "torch.distributed wants a port even for one rank"),
    Seam(_SRT + "runtime_context.publish", "the configuration of a process", ("server_args",)),
)


class Replayed(NamedTuple):
    """What came out of a replay: every segment in the order of its end, and what the engine says of itself."""

    segments: list[SegmentRun]
    emulated_s: float
    passes: int  # forward passes
    stalls: int  # times that nothing could start although something waited
    table: dict[str, int]  # counters of our program table; empty under a policy of SGLang's own
    memory: list[tuple[float, ...]]  # second, then tokens that run, are paused programs', are cached, are free
    copied: tuple[int, int]  # tokens to the host and back


def replay(
    plans: Sequence[ProgramPlan],
    device: Device,
    policy: str,
    *,
    pool_tokens: int,
    max_running: int,
    overlap: bool = False,
    concurrency: int | None = None,
    hints: str = "class",
    watch: Callable[[float, int], None] = lambda seconds, programs: None,
    **flags: Any,
) -> Replayed:
    """What happens to `plans` under SGLang's policy `policy` (or CORRECTED), if passes take what `device` says?

    Programs tell of themselves what `hints` says (declare.KINDS). With `concurrency` the loop is closed. `flags` are
    further fields of ServerArgs. `watch` hears now and then how many seconds were emulated and how many programs are
    done. Raises SeamError when the installed SGLang differs, AstraeaError when a
    segment did not come out as planned or the pool does not add up.
    """
    load_plugins()
    if (problem := drift(SEAMS)) is not None:
        raise SeamError(problem)
    if policy == POLICY and "sglang.srt.server_args.ServerArgs.resolve_once" not in HookRegistry._patched:
        raise SeamError("SGLang did not load the plugin; unset SGLANG_PLUGINS and check `pip show astraea-sglang`")
    torch.set_num_threads(1)
    peer = Peer(plans, device, hints, watch, concurrency=concurrency, overlap=overlap)
    scheduler = build(
        peer,
        schedule_policy="hrrn" if policy == CORRECTED else policy,
        max_total_tokens=pool_tokens,
        max_running_requests=max_running,
        chunked_prefill_size=device.chunk_tokens,
        disable_overlap_schedule=not overlap,
        **flags,
    )
    emulate(peer, scheduler)
    if policy == CORRECTED:
        hrrn.correct(scheduler)
    random.seed(0)
    with virtual_time(peer):
        scheduler.run_event_loop()
    engine = getattr(scheduler, "astraea", None)
    _check(peer, scheduler, engine)
    counts = dict(engine.table.counts) if engine is not None else {}
    copied = peer.clock.to_host.tokens, peer.clock.to_device.tokens
    return Replayed(peer.segments, peer.clock.elapsed, peer.passes, peer.stalls, counts, peer.memory.rows, copied)


class _VirtualScheduler(Scheduler):
    """A scheduler whose only neighbour is a Peer."""

    def __init__(self, peer: Peer, server_args: ServerArgs, port_args: PortArgs) -> None:
        self._peer = peer
        super().__init__(server_args, port_args)
        self.tp_worker.forward_batch_generation = peer.forward

    def init_ipc_channels(self, port_args: PortArgs) -> None:
        """No sockets, and nothing in shared memory."""
        peer: Any = self._peer
        self.ipc_channels = SchedulerIpcChannels(
            recv_from_tokenizer=peer,
            recv_from_rpc=None,
            send_to_tokenizer=peer,
            send_to_detokenizer=peer,
            send_metrics_from_scheduler=None,
        )
        self.recv_from_tokenizer = self.load_snapshot_writer = None

    def init_request_receiver(self) -> None:
        self.request_receiver = self._peer

    def get_output_streamer_class(self) -> Any:
        return lambda **kwargs: self._peer


def build(peer: Peer, **flags: Any) -> Scheduler:
    """A scheduler with `flags` of ServerArgs in this process, whose only neighbour is `peer`. Once per process."""
    with TemporaryDirectory(prefix="astraea-bench-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODEL))
        server_args = ServerArgs(**(FLAGS | flags | {"model_path": folder}))
        publish(server_args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
        names = {field.name: "" for field in dataclasses.fields(PortArgs)}
        ports: Any = names | {"nccl_port": get_free_port_below_ephemeral()}
        scheduler: Any = _VirtualScheduler(peer, server_args, PortArgs(**ports))
    peer.sessions = bool(flags.get("enable_session_radix_cache"))
    peer.scheduler = scheduler
    return scheduler


def emulate(peer: Peer, scheduler: Any) -> None:
    """From now on the scheduler's passes and copies are over when the peer's clock says so."""
    if peer.overlap:
        scheduler.device_module = _Device(scheduler.device_module, peer.clock)
    if (controller := getattr(scheduler.tree_cache, "cache_controller", None)) is not None:
        copies, clock = controller.l2_transfer_engine, peer.clock
        copies.submit_device_to_host = _timed(copies.submit_device_to_host, clock, clock.to_host)
        copies.submit_host_to_device = _timed(copies.submit_host_to_device, clock, clock.to_device)


class _Device:
    """SGLang's device module, whose events follow the virtual device."""

    def __init__(self, module: Any, clock: Clock) -> None:
        self._module, self._clock = module, clock

    def Event(self, **kwargs: Any) -> Event:
        return Event(self._clock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _timed(submit: Callable[..., Any], clock: Clock, link: Link) -> Callable[..., Any]:
    """A submission of L2TransferEngine, copied at once, that is not over before `link` could have done it.

    It begins when the pass under way has written what is to be copied, or no longer reads what is overwritten.
    """

    def submitted(transfers: Sequence[Any], **kwargs: Any) -> Any:
        completion = submit(transfers, **kwargs)
        tokens = len(transfers[0].host_indices)
        begun, ended = link.copy(tokens, max(clock.now, clock.device_free))
        return completion._replace(
            start_event=Event(clock, begun), finish_event=Event(clock, ended), timing_enabled=True
        )

    return submitted


@contextmanager
def virtual_time(peer: Peer) -> Iterator[None]:
    """Every clock of this process reads the peer's. Only after construction: a stamp of 0 means unset to SGLang."""
    names, clock = ("perf_counter", "monotonic", "time"), peer.clock
    real = {name: getattr(time, name) for name in names} | {f"{n}_ns": getattr(time, f"{n}_ns") for n in names}
    stamps = req_time_stats.monotonic_time
    for name in names:
        setattr(time, name, lambda: clock.now)
        setattr(time, f"{name}_ns", lambda: int(clock.now * 1e9))
    req_time_stats.monotonic_time = time.perf_counter
    try:
        yield
    finally:
        req_time_stats.monotonic_time = stamps
        for name, clock in real.items():
            setattr(time, name, clock)


def _check(peer: Peer, scheduler: Any, engine: Any) -> None:
    """Did everything come out as planned? What is wrong would be a mistake of ours, or of SGLang's accounting."""
    pool, tree = scheduler.token_to_kv_pool_allocator, scheduler.tree_cache
    held = scheduler.max_total_num_tokens - pool.available_size() - tree.evictable_size()
    problems = list(peer.bad)
    if held or tree.protected_size():
        problems.append(f"{held} tokens of the pool are lost, {tree.protected_size()} still locked")
    if peer.crowd.unfinished:
        problems.append(f"{peer.crowd.unfinished} programs did not finish")
    if engine is not None and (engine.table.counts["faults"] or engine.table.programs):
        faults, left = engine.table.counts["faults"], len(engine.table.programs)
        problems.append(f"the program table counts {faults} faults and keeps {left} programs")
    if problems:
        raise AstraeaError(f"the replay went wrong in {len(problems)} ways, the first: {problems[0]}")
