"""Our CPU platform as SGLang itself finds, asks and obeys it."""

import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.platforms import current_platform
from sglang.srt.platforms.interface import SRTPlatform
from sglang.srt.server_args import ServerArgs

from astraea_sglang.patches import cpu_platform
from astraea_sglang.patches.platform_cpu import TorchCpu

without_accelerator = pytest.mark.skipif(torch.accelerator.is_available(), reason="SGLang runs on the accelerator")


def resolved(model: Path, **given: Any) -> Any:
    args = ServerArgs(**{"model_path": str(model), **given})
    args.resolve_once()
    return resolved_view(args)


def test_sglang_keeps_its_own_platform_where_there_is_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert cpu_platform() is None


def test_the_platform_is_named_as_sglang_resolves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    name = cpu_platform()
    assert name is not None and pkgutil.resolve_name(name) is TorchCpu


@without_accelerator
def test_sglang_runs_on_our_platform_where_there_is_no_accelerator() -> None:
    assert isinstance(current_platform, TorchCpu) and current_platform.is_out_of_tree()


def test_every_question_sglang_asks_of_a_platform_has_an_answer() -> None:
    platform = TorchCpu()
    assert isinstance(platform, SRTPlatform)
    assert platform.get_device() == "cpu"
    assert 0 < platform.get_current_memory_usage() < platform.get_device_total_memory()
    assert platform.get_default_attention_backend() == "torch_native"
    assert platform.get_torch_distributed_backend_str() == "gloo"
    assert platform.is_pin_memory_available() is False
    platform.set_device(torch.device("cpu"))
    platform.synchronize()
    platform.empty_cache()
    platform.init_backend()


def test_what_needs_an_accelerator_is_declared_absent() -> None:
    can = TorchCpu().capabilities
    assert not (can.supports_triton or can.graph_capture or can.piecewise_graph or can.hicache_device_kernels)


@without_accelerator
def test_a_repetition_penalty_calls_no_c_compiler() -> None:
    from sglang.srt.sampling.penaltylib.repetition_penalty import apply_scaling_penalties
    from torch._dynamo.utils import counters

    counters.clear()
    logits = torch.tensor([[2.0, -2.0]])
    apply_scaling_penalties(logits, torch.tensor([[2.0, 2.0]]))
    assert logits.tolist() == [[1.0, -4.0]]
    assert counters["frames"]["ok"] == 1 and "inductor" not in counters


@without_accelerator
def test_a_bare_launch_gets_settings_that_a_cpu_can_run(model_directory: Path) -> None:
    args = resolved(model_directory)
    assert (args.device, args.dtype) == ("cpu", "float32")
    assert (args.attention_backend, args.sampling_backend) == ("torch_native", "pytorch")
    assert args.mem_fraction_static == 0.5


@without_accelerator
def test_what_the_user_says_wins(model_directory: Path) -> None:
    args = resolved(model_directory, dtype="bfloat16", mem_fraction_static=0.2)
    assert (args.dtype, args.mem_fraction_static) == ("bfloat16", 0.2)
