"""SGLang's HiCache where the device is the CPU, too: a host pool that is not pinned, and copies without a kernel."""

from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt import platforms
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.mem_cache.pool_host import common, mha

from astraea_sglang.errors import ConfigError
from astraea_sglang.patches import args
from astraea_sglang.patches.platform_cpu import TorchCpu

COVERED = {"--hicache-io-backend": "direct", "--hicache-mem-layout": "layer_first"}


def prepare(cache: Any, *rest: Any, **kwargs: Any) -> None:
    """BEFORE UnifiedRadixCache.init_hicache: on our CPU platform, what its host pool lacks; nothing on any other."""
    if isinstance(platforms.current_platform, TorchCpu):
        common.ALLOC_MEMORY_FUNCS["cpu"] = allocate
        mha.transfer_kv_direct = transfer_kv_direct  # SGLang imports it where there is a kernel for it


def check(result: None, server_args: Any) -> None:
    """AFTER handle_hicache: refuse, before a process is spawned, the copies that only a kernel can make.

    As SGLang resolved them. On the command line it exits with one line, under `sgl.Engine` it raises ConfigError.
    """
    asked = resolving_view(server_args)
    seen = {"--hicache-io-backend": asked.hicache_io_backend, "--hicache-mem-layout": asked.hicache_mem_layout}
    if not asked.enable_hierarchical_cache or seen == COVERED or not isinstance(platforms.current_platform, TorchCpu):
        return
    problem = ConfigError(f"--enable-hierarchical-cache on a CPU cannot do {_typed(seen)}; type: {_typed(COVERED)}")
    raise SystemExit(f"astraea: {problem}") if args._from_command_line else problem


def allocate(
    dims: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    pin_memory: bool,
    allocator: Any,
    registration_granularity_bytes: int | None = None,
) -> torch.Tensor:
    """Which memory does the host pool get? As much as SGLang asks of its allocator, never registered with CUDA."""
    return common.alloc_with_host_register(dims, dtype, device, False, allocator)


def transfer_kv_direct(
    src_layers: Sequence[torch.Tensor],
    dst_layers: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Copy KV slots between the pools, layer by layer.

    SGLang names every slot of whole pages. Its kernel reads only the first of each page; here they are all copied as
    named, whatever the `page_size`.
    """
    for source, target in zip(src_layers, dst_layers, strict=True):
        target.index_copy_(0, dst_indices, source.index_select(0, src_indices))


def _typed(flags: dict[str, str]) -> str:
    return " ".join(f"{name} {value}" for name, value in flags.items())
