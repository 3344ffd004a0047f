from array import array
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.managers.io_struct import unwrap_from_pickle
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components import output_streamer
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from astraea_sglang.actions import Outcome
from astraea_sglang.patches.answers import answering_streamer, tell

PINNED = Outcome("kv.0", "kv.pin", "accepted", ttl_s=30.0)
REFUSED = Outcome("kv.1", "kv.prefetch", "rejected", "no host pool")
ANSWERS = [PINNED.payload(), REFUSED.payload()]


def streamer_class(scheduler: Any) -> Any:
    return Scheduler.get_output_streamer_class(scheduler)


OURS, OTHER_POLICY = SimpleNamespace(astraea=object()), SimpleNamespace()


class Wire:
    """SGLang's streamer, and behind it what its tokenizer makes of the output: the meta_info of every chunk."""

    def __init__(self, base: Any = None) -> None:
        made: Any = streamer_class(OURS) if base is None else answering_streamer(lambda scheduler: base, OURS)
        self.streamer = made(
            send_to_detokenizer=self,
            tree_cache=SimpleNamespace(),
            server_args=SimpleNamespace(enable_lmcache=False),
            is_generation=True,
            spec_algorithm=SpeculativeAlgorithm.NONE,
            disaggregation_mode=DisaggregationMode.NULL,
            enable_hicache_storage=lambda: False,
        )
        self.tokenizer = object.__new__(TokenizerManager)
        self.states: dict[str, Any] = {}
        self.chunks: dict[str, list[dict[str, Any]]] = {}

    def send_output(self, output: Any) -> None:
        info: Any = unwrap_from_pickle(output.customized_info)
        for i, rid in enumerate(output.rids):
            fresh = SimpleNamespace(customized_info_accumulated={}, customized_info_reported_keys=set())
            state, meta_info = self.states.setdefault(rid, fresh), {}
            if info is not None:
                self.tokenizer.update_request_meta_info(meta_info, state, info, i, output.finished_reasons[i])
            self.chunks.setdefault(rid, []).append({key: list(values) for key, values in meta_info.items()})

    def step(self, *reqs: Req, finish: bool = False, tokens: int = 1) -> None:
        for req in reqs:
            req.output_ids.extend([7] * tokens)
            if finish:
                req.finished_reason = FINISH_LENGTH(len(req.output_ids))
        self.streamer.stream_output(list(reqs), False)


@pytest.fixture(autouse=True)
def _runtime(monkeypatch):
    views = {
        "get_serving": SimpleNamespace(stream_interval=1, weight_version="default"),
        "get_parallel": SimpleNamespace(dp_rank=None, attn_tp_rank=0),
        "get_observability": SimpleNamespace(enable_request_time_stats_logging=False),
    }
    for name, view in views.items():
        monkeypatch.setattr(output_streamer, name, lambda view=view: view)


def request(rid: str, *, stream: bool = False) -> Req:
    sampling_params = SamplingParams(max_new_tokens=8)
    sampling_params.normalize(None)
    return Req(rid, "", array("q", [1, 2, 3]), sampling_params, stream=stream)


def test_with_another_policy_the_streamer_is_sglangs_own():
    assert streamer_class(OTHER_POLICY) is SchedulerOutputStreamer


def test_with_ours_answers_belong_to_the_request_and_other_keys_to_tokens():
    streamer = Wire().streamer
    assert isinstance(streamer, SchedulerOutputStreamer)
    assert streamer.is_request_level_customized_info_key("astraea")
    assert not streamer.is_request_level_customized_info_key("entropy")


def test_no_outcomes_set_nothing():
    req = request("r")
    tell(req, [])
    assert req.customized_info is None


def test_a_later_telling_replaces_an_earlier_one_and_leaves_other_keys():
    req = request("r")
    req.customized_info = {"entropy": [0.5]}
    tell(req, [REFUSED])
    tell(req, [PINNED])
    assert req.customized_info == {"entropy": [0.5], "astraea": [PINNED.payload()]}


def test_a_response_that_is_no_stream_carries_the_answers_at_its_end():
    wire, req = Wire(), request("r")
    tell(req, [PINNED, REFUSED])
    for _ in range(59):
        wire.step(req)  # with SGLang's interim output, which no client sees
    wire.step(req, finish=True)
    assert [chunk.get("astraea") for chunk in wire.chunks["r"]] == [None, ANSWERS]


def test_a_stream_carries_the_answers_once_in_its_first_chunk():
    wire, req = Wire(), request("r", stream=True)
    tell(req, [PINNED, REFUSED])
    wire.step(req)
    wire.step(req)
    wire.step(req, finish=True)
    assert [chunk.get("astraea") for chunk in wire.chunks["r"]] == [ANSWERS, None, None]


def test_a_stream_that_ends_with_its_first_chunk_carries_them_there():
    wire, req = Wire(), request("r", stream=True)
    tell(req, [PINNED])
    wire.step(req, finish=True)
    assert wire.chunks["r"] == [{"astraea": [PINNED.payload()]}]


def test_a_stream_retracted_before_its_first_token_is_not_told_twice():
    wire, req = Wire(), request("r", stream=True)
    tell(req, [PINNED])
    wire.step(req, tokens=0)  # the overlapped batch it was retracted from
    wire.step(req)
    assert wire.states["r"].customized_info_accumulated == {"astraea": [PINNED.payload()]}


def test_a_retracted_request_keeps_its_answers():
    wire, req = Wire(), request("r")
    tell(req, [PINNED])
    wire.step(req)
    req.reset_for_retract()
    wire.step(req)
    wire.step(req, finish=True)
    assert wire.chunks["r"] == [{"astraea": [PINNED.payload()]}]


def test_requests_that_share_a_batch_keep_their_own_answers():
    wire = Wire()
    first, silent, second = request("a", stream=True), request("b", stream=True), request("c")
    tell(first, [PINNED])
    tell(second, [REFUSED])
    wire.step(first, silent, second, finish=True)
    heard = {rid: chunks[-1].get("astraea") for rid, chunks in wire.chunks.items()}
    assert heard == {"a": [PINNED.payload()], "b": [], "c": [REFUSED.payload()]}


def test_values_per_token_are_streamed_beside_the_answers():
    wire, req = Wire(), request("r", stream=True)
    req.customized_info = {"entropy": [0.1, 0.2]}
    tell(req, [PINNED])
    wire.step(req)
    wire.step(req)
    assert wire.chunks["r"] == [
        {"entropy": [0.1], "astraea": [PINNED.payload()]},
        {"entropy": [0.1, 0.2]},
    ]


def test_a_batch_without_answers_carries_nothing():
    wire, req = Wire(), request("r")
    wire.step(req, finish=True)
    assert wire.chunks["r"] == [{}]


class Additional(SchedulerOutputStreamer):
    """Another plugin's streamer that adds output of its own, when it is switched on."""

    has_additional_customized_info = True
    on = True

    def should_build_additional_customized_info(self) -> bool:
        return self.on

    def build_additional_customized_info(self, reqs: list[Req]) -> dict[str, list]:
        return {"other": [[req.rid] for req in reqs]}


@pytest.mark.parametrize(("on", "others"), [(True, {"other": ["r"]}), (False, {})])
def test_another_streamers_additional_output_is_kept(monkeypatch, on, others):
    monkeypatch.setattr(Additional, "on", on)
    wire, req = Wire(Additional), request("r")
    tell(req, [PINNED])
    wire.step(req, finish=True)
    assert wire.chunks["r"] == [{"astraea": [PINNED.payload()], **others}]


def test_a_scheduler_with_a_streamer_of_its_own_keeps_it():
    class Virtual(Scheduler):
        def get_output_streamer_class(self) -> Any:
            return "its own"

    assert Virtual.get_output_streamer_class(OURS) == "its own"  # type: ignore[arg-type]
