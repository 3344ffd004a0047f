"""The emulated device without a server: when passes end, what they return, what is refused."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.managers.io_struct import GenerateReqInput

from astraea_sglang.bench.device import Device
from astraea_sglang.errors import AstraeaError, HintError
from astraea_sglang.patches import batches, emulate
from astraea_sglang.patches.emulate import LATE, Sleeper, admit, check, ended, next_token
from astraea_sglang.patches.seams import drift

H200 = "h200-llama3.1-8b"
seconds = st.floats(0.0, 0.9 * LATE)


def asked(output: int, *, most: int = 512, tokens: int | None = None, prompt: tuple[int, ...] = (7, 8)) -> Any:
    """A request of SGLang's scheduler that has `output` tokens so far."""
    custom = None if tokens is None else {"emulated_tokens": tokens}
    params = SimpleNamespace(max_new_tokens=most, custom_params=custom)
    return SimpleNamespace(output_ids=[8] * output, origin_input_ids=prompt, sampling_params=params, eos_token_ids={2})


def batch(extend: bool, seq: list[int], prefix: list[int], decoding: int = 0) -> Any:
    """A batch of SGLang's scheduler; of a mixed one the last `decoding` rows decode."""
    return SimpleNamespace(
        reqs=[None] * len(seq),
        forward_mode=SimpleNamespace(is_extend=lambda: extend),
        seq_lens_cpu=torch.tensor(seq),
        prefix_lens=prefix,
        extend_lens=[length - cached for length, cached in zip(seq, prefix, strict=True)],
        decoding_reqs=[None] * decoding or None,
    )


def arguments(**given: Any) -> Any:
    """ServerArgs as `check` sees them: unresolved."""
    settings = {
        "disable_overlap_schedule": True,
        "pp_size": 1,
        "speculative_algorithm": None,
        "disaggregation_mode": "null",
        "is_embedding": False,
        "chunked_prefill_size": None,
    }
    return SimpleNamespace(**(settings | given))


@pytest.fixture
def emulating(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As in a process of a server that emulates: the variable is set, the hooks are said to be in."""
    monkeypatch.setenv(emulate.VARIABLE, H200)
    monkeypatch.setattr(emulate, "has_accelerator", lambda: False)
    monkeypatch.setattr(emulate.HookRegistry, "_patched", {seam.target for seam in emulate.SEAMS})
    return monkeypatch


def test_the_installed_sglang_has_every_seam():
    assert drift(emulate.SEAMS) is None


@pytest.mark.parametrize(
    ("given", "work"),
    [
        (batch(False, [10, 20], [0, 0]), ([], 2, 30)),
        (batch(True, [10, 20], [4, 0]), ([(6, 10), (20, 20)], 0, 0)),
        (batch(True, [10, 21, 31], [4, 20, 30], decoding=2), ([(6, 10)], 2, 52)),
    ],
    ids=["decode", "prefill", "mixed"],
)
def test_a_batch_is_read_as_the_work_it_is(given, work):
    assert batches.work(given) == work


@given(free=seconds, late=seconds, cost=seconds)
def test_a_scheduler_that_goes_straight_on_costs_the_device_no_time(free, late, cost):
    assert ended(free, free + late, cost, went_on=True) == free + cost


@given(free=seconds, now=seconds, cost=seconds)
def test_after_idling_a_pass_begins_when_it_is_asked_for(free, now, cost):
    assert ended(free, now, cost, went_on=False) == max(free, now) + cost


def test_a_long_pause_is_not_caught_up_with_and_logged(caplog):
    assert ended(1.0, 1.0 + 2 * LATE, 0.5, went_on=True) == 1.5 + 2 * LATE
    assert f"stood still for {2 * LATE:.1f} s" in caplog.text


def test_passes_in_a_row_take_what_the_device_says_whatever_lies_between():
    sleeper = Sleeper(Device(0.02, 0, 0, 0, 0, 4096))
    sleeper.run(batches.Work([], 1, 10), went_on=False)
    began = sleeper.free
    for _ in range(3):
        time.sleep(0.01)  # what the scheduler does
        sleeper.run(batches.Work([], 1, 10), went_on=True)
    assert sleeper.free == pytest.approx(began + 0.06)
    assert time.monotonic() >= sleeper.free


@pytest.mark.parametrize(
    ("req", "token"),
    [
        (asked(0, tokens=3), 8),
        (asked(1, tokens=3), 8),
        (asked(2, tokens=3), 2),
        (asked(0, tokens=1), 2),
        (asked(2, most=4), 8),
        (asked(3, most=4), 2),
        (asked(0, prompt=(7, 2)), 3),
    ],
)
def test_a_request_gets_its_prompts_last_token_again_and_an_end_as_its_last(req, token):
    assert next_token(req) == token


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sampling_params": {"custom_params": {"emulated_tokens": 0}}}, "emulated_tokens is 0; send a whole number"),
        ({"sampling_params": {"custom_params": {"emulated_tokens": "9"}}}, "emulated_tokens is '9'"),
        ({"sampling_params": [{}, {"custom_params": {"emulated_tokens": -1}}]}, "emulated_tokens is -1"),
        ({"sampling_params": {"custom_params": {"emulated_tokens": 3}, "ignore_eos": True}}, "leave ignore_eos out"),
        ({"sampling_params": {"regex": "a+"}}, "sampling_params.regex needs a model"),
        ({"return_logprob": True}, "return_logprob needs a model"),
        ({"return_logprob": [False, True]}, "return_logprob needs a model"),
        ({"return_hidden_states": True}, "return_hidden_states needs a model"),
    ],
)
def test_what_the_device_has_no_answer_to_is_refused_before_it_reaches_the_scheduler(given, words):
    with pytest.raises(HintError, match=words.replace("+", r"\+")):
        admit(None, GenerateReqInput(input_ids=[1, 2], **given))


@pytest.mark.parametrize(
    "given", [{}, {"sampling_params": {"custom_params": {"emulated_tokens": 3}}}, {"sampling_params": [{}, {}]}]
)
def test_other_requests_pass(given):
    admit(None, GenerateReqInput(input_ids=[1, 2], **given))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"disable_overlap_schedule": False}, "add --disable-overlap-schedule"),
        ({"pp_size": 2}, "--pp-size 2 cannot be emulated"),
        ({"speculative_algorithm": "NGRAM"}, "--speculative-algorithm NGRAM cannot be emulated"),
        ({"disaggregation_mode": "prefill"}, "--disaggregation-mode prefill cannot be emulated"),
        ({"is_embedding": True}, "--is-embedding cannot be emulated"),
    ],
)
def test_settings_that_cannot_be_emulated_stop_the_start(emulating, given, words):
    with pytest.raises((AstraeaError, SystemExit), match=words):
        check(arguments(**given))


def test_an_accelerator_stops_the_start(emulating):
    emulating.setattr(emulate, "has_accelerator", lambda: True)
    with pytest.raises((AstraeaError, SystemExit), match="set CUDA_VISIBLE_DEVICES="):
        check(arguments())


def test_a_device_that_there_is_not_stops_the_start(emulating):
    emulating.setenv(emulate.VARIABLE, "h300")
    with pytest.raises((AstraeaError, SystemExit), match=f"ASTRAEA_EMULATE=h300 .*{H200}"):
        check(arguments())


def test_hooks_that_are_not_in_stop_the_start(emulating):
    emulating.setattr(emulate.HookRegistry, "_patched", set())
    with pytest.raises((AstraeaError, SystemExit), match="could not hook"):
        check(arguments())


@pytest.mark.parametrize(("asked_for", "becomes"), [(None, 4096), (512, 512)])
def test_prompts_are_cut_as_the_device_does_unless_the_user_says_otherwise(emulating, asked_for, becomes):
    args = arguments(chunked_prefill_size=asked_for)
    check(args)
    assert args.chunked_prefill_size == becomes
