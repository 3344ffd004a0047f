"""SGLang on any CPU through plain torch: no accelerator, no AMX, no C++ compiler, no CPU build of sgl-kernel."""

from typing import Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform


class TorchCpu(CpuDeviceMixin, SRTPlatform):
    """What does SGLang run on when torch sees no accelerator? The CPU, with torch_native attention and no graphs.

    SGLang 0.5.23 has a CPU platform for its own CPU build only; this one asks nothing of the machine but torch. Its
    base class already says no to graphs, Triton, pinned memory and PyNccl.
    """

    _enum = PlatformEnum.OOT

    # SGLang splits the answer as text, yet its CPU mixin returns a torch.device: without this, --device cpu is needed.
    def get_device(self, device_id: int = 0) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Which device serves rank `device_id`? "cpu" for all of them."""
        return self.device_type

    def get_default_attention_backend(self) -> str:
        """Which attention backend when none was asked for? "torch_native", the one without a compiled kernel."""
        return "torch_native"

    def get_compile_backend(self, mode: str | None = None) -> str:
        """What runs a function marked for torch.compile? "eager": torch itself, whatever the `mode`.

        "inductor" calls a C++ compiler and stalled the whole server for 20 s at the first repetition penalty.
        """
        return "eager"

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Which server arguments differ from SGLang's defaults? Those that were not given; assigning sets them."""
        if server_args.dtype == "auto":
            server_args.dtype = "float32"  # a float32 checkpoint would run in float16, which few CPUs multiply
        if server_args.mem_fraction_static is None:
            server_args.mem_fraction_static = 0.5  # of the memory free at start, which every other process needs too
