"""HiCache's host pool on a device that is the CPU: the copies, who gets them, and which settings are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sglang.srt import platforms
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.mem_cache.pool_host import common, mha
from sglang.srt.platforms.interface import SRTPlatform
from sglang.srt.server_args import ServerArgs

from astraea_sglang.errors import ConfigError
from astraea_sglang.patches import args
from astraea_sglang.patches.hicache_cpu import prepare, transfer_kv_direct
from astraea_sglang.patches.platform_cpu import TorchCpu

LAYERS, HEADS, WIDTH = 3, 2, 4
DIRECT = {"hicache_io_backend": "direct", "hicache_mem_layout": "layer_first"}


@pytest.fixture
def sglang_as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang's modules without what `prepare` puts there, now and afterwards."""
    monkeypatch.setattr(mha, "transfer_kv_direct", None, raising=False)
    monkeypatch.setitem(common.ALLOC_MEMORY_FUNCS, "cpu", common.alloc_with_host_register)


def run_on(platform: SRTPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms, "_current_platform", platform)


def layers(slots: int) -> list[torch.Tensor]:
    return [torch.rand(slots, HEADS, WIDTH) for _ in range(2 * LAYERS)]


def slots_of(pages: list[int], page_size: int) -> torch.Tensor:
    """Every slot of these pages, as SGLang names them."""
    return torch.tensor([page * page_size + i for page in pages for i in range(page_size)])


@pytest.mark.parametrize("page_size", [1, 16])
def test_whole_pages_are_copied_in_every_layer_and_nothing_else_is_touched(page_size: int) -> None:
    source, target = layers(8 * page_size), layers(6 * page_size)
    expected = [layer.clone() for layer in target]
    pages = {7: 0, 2: 5, 3: 1}
    for here, there in zip(source, expected, strict=True):
        for a, b in pages.items():  # as SGLang's kernel does: from the first slot of each page
            there[b * page_size : (b + 1) * page_size] = here[a * page_size : (a + 1) * page_size]
    transfer_kv_direct(source, target, slots_of([*pages], page_size), slots_of([*pages.values()], page_size), page_size)
    assert all(torch.equal(*pair) for pair in zip(target, expected, strict=True))


def test_copies_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError):
        transfer_kv_direct(layers(4), layers(4)[1:], torch.arange(2), torch.arange(2), 1)
    with pytest.raises(IndexError):
        transfer_kv_direct(layers(4), layers(4), torch.arange(1), torch.arange(2), 1)


@pytest.mark.parametrize("page_size", [1, 16])
def test_sglangs_host_pool_gives_back_what_it_was_given(
    page_size: int, sglang_as_installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on(TorchCpu(), monkeypatch)
    prepare(cache=None)
    monkeypatch.setattr(mha, "host_memory_budget_bytes", lambda *_, **__: 1 << 30)
    device: Any = MHATokenToKVPool(4 * page_size, page_size, torch.float32, HEADS, WIDTH, LAYERS, "cpu", False)
    host = mha.MHATokenToKVPoolHost(
        device.get_device_pool_infos()[0].buffer_info,
        host_to_device_ratio=3,
        host_size=0,
        page_size=page_size,
        layout="layer_first",
        device_capacity_tokens=device.size,
        start_layer=0,
        end_layer=LAYERS,
    )
    buffers = [*device.k_buffer, *device.v_buffer]
    given = layers(buffers[0].shape[0])
    for buffer, values in zip(buffers, given, strict=True):
        buffer.copy_(values)
    there, first, then = slots_of([4, 9], page_size), slots_of([1, 3], page_size), slots_of([2, 1], page_size)
    host.backup_from_device_all_layer(device, there, first, "direct")
    for buffer in buffers:
        buffer.zero_()
    for layer in range(LAYERS):
        host.load_to_device_per_layer(device, there, then, layer, "direct")
    assert all(torch.equal(buffer[then], values[first]) for buffer, values in zip(buffers, given, strict=True))


def test_on_any_other_platform_sglang_stays_as_installed(
    sglang_as_installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on(SRTPlatform(), monkeypatch)
    prepare(cache=None)
    assert mha.transfer_kv_direct is None
    assert common.ALLOC_MEMORY_FUNCS["cpu"] is common.alloc_with_host_register


def resolve(model: Path, platform: SRTPlatform, monkeypatch: pytest.MonkeyPatch, **given: Any) -> None:
    run_on(platform, monkeypatch)
    ServerArgs(**{"model_path": str(model), "device": "cpu", **given}).resolve_once()


def test_on_a_cpu_hicache_is_refused_with_the_flags_to_add(
    model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(args, "_from_command_line", False)
    with pytest.raises(ConfigError) as caught:
        resolve(model_directory, TorchCpu(), monkeypatch, enable_hierarchical_cache=True)
    assert str(caught.value) == (
        "--enable-hierarchical-cache on a CPU cannot do --hicache-io-backend kernel --hicache-mem-layout page_first; "
        "type: --hicache-io-backend direct --hicache-mem-layout layer_first"
    )
    monkeypatch.setattr(args, "_from_command_line", True)
    with pytest.raises(SystemExit, match="astraea: --enable-hierarchical-cache on a CPU"):
        resolve(model_directory, TorchCpu(), monkeypatch, enable_hierarchical_cache=True, hicache_io_backend="direct")


def test_what_works_or_is_off_is_not_refused(model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(model_directory, TorchCpu(), monkeypatch, enable_hierarchical_cache=True, **DIRECT)
    resolve(model_directory, TorchCpu(), monkeypatch)
    resolve(model_directory, SRTPlatform(), monkeypatch, enable_hierarchical_cache=True)
