"""Which tools does a finished request's output call? As SGLang's own tool-call parsers see it."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from sglang.srt.entrypoints.openai.protocol import Function, Tool
from sglang.srt.function_call.function_call_parser import FunctionCallParser
from sglang.srt.managers.schedule_batch import FINISH_MATCHED_TOKEN

from astraea_sglang.hints import NAME_LENGTH, Hints

logger = logging.getLogger(__name__)
MOST_TOKENS, MOST_CHARACTERS = 16_384, 16_384  # beyond, an output is not read: some parsers take seconds, on every rank


def said(req: Any) -> Sequence[int]:
    """What did the model say, in token ids? Without the token that ended its turn."""
    return req.output_ids[:-1] if isinstance(req.finished_reason, FINISH_MATCHED_TOKEN) else req.output_ids


def tools_called(req: Any, output: Sequence[int], hints: Hints) -> tuple[str, ...] | None:
    """Which tools does it call, by name and in order? None if its model was offered none, or its output is unreadable.

    Without a parser SGLang hands a call over as text, so that its client sees none; one that was forced is a JSON list.
    What a thought quotes does not count, where it ends in </think>.
    """
    if not hints.tools or req.tokenizer is None or len(output) > MOST_TOKENS:
        return None
    if not hints.parser and not hints.forced:
        return ()
    try:
        text = req.tokenizer.decode(list(output), skip_special_tokens=False)
        text = text.rpartition("</think>")[2]
        if len(text) > MOST_CHARACTERS:
            return None
        return tuple(name[:NAME_LENGTH] for name in _names(text, hints))
    except Exception:  # a parser's own, on whatever a model says
        logger.debug("astraea: no tool call could be read from the output of %s", req.rid, exc_info=True)
        return None


def _names(text: str, hints: Hints) -> list[str]:
    parser = None
    if hints.parser:
        tools = [Tool(type="function", function=Function(name=name)) for name in hints.tools]
        parser = FunctionCallParser(tools, hints.parser, tool_choice="required" if hints.forced else "auto")
    if parser is not None and (not hints.forced or parser.owns_tool_format()):
        calls = parser.parse_non_stream(text)[1] if parser.has_tool_call(text) else []
        return [call.name for call in calls if call.name]
    if not hints.forced:
        return []
    calls = json.loads(text)
    return [call["name"] for call in (calls if isinstance(calls, list) else [calls])]
