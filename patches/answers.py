"""How does a client learn what became of its orders for KV? As `meta_info["astraea"]`, a list, in its response."""

from collections.abc import Callable, Sequence
from typing import Any

from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer

from astraea_sglang.actions import Outcome

KEY = "astraea"
PROGRAM = "astraea_program"  # whose request it is, where the scheduler found that
KEYS = (KEY, PROGRAM)


def tell(req: Any, outcomes: Sequence[Outcome]) -> None:
    """Let the response to a scheduler request say what became of its orders; a later call replaces an earlier one.

    A stream carries them in its first chunk, any other response at its end: what is told after that is not heard, and
    neither is it where a request is aborted while it waits.
    """
    if outcomes:
        _add(req, KEY, [outcome.payload() for outcome in outcomes])


def recognised(req: Any, program_id: str) -> None:
    """Let the response say that the request was recognised as that program's, by its prompt."""
    _add(req, PROGRAM, [{"program_id": program_id, "identity": "prompt"}])


def _add(req: Any, key: str, values: list[Any]) -> None:
    req.customized_info = (req.customized_info or {}) | {key: values}


def answering_streamer(
    original: Callable[[Any], type[SchedulerOutputStreamer]], scheduler: Any
) -> type[SchedulerOutputStreamer]:
    """AROUND Scheduler.get_output_streamer_class: one that sends answers whole and once, with our policy."""
    base = original(scheduler)
    if getattr(scheduler, "astraea", None) is None:  # set by then: the policy is made before the streamer
        return base

    class AnsweringStreamer(base):
        __slots__ = ()
        has_additional_customized_info = True  # so that build_... is called, after each pass over the output

        def is_request_level_customized_info_key(self, key: str) -> bool:
            return key in KEYS or super().is_request_level_customized_info_key(key)

        def should_build_additional_customized_info(self) -> bool:
            return True

        def build_additional_customized_info(self, reqs: list[Any]) -> dict[str, list[Any]]:
            # A stream retracted in the step of its first token is sent without one, and would be told again with it.
            for req in reqs:
                if req.stream and req.customized_info:
                    for key in KEYS:
                        req.customized_info.pop(key, None)
            if base.has_additional_customized_info and super().should_build_additional_customized_info():
                return super().build_additional_customized_info(reqs)
            return {}

    return AnsweringStreamer
