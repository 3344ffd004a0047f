import json
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, FINISH_MATCHED_TOKEN

from astraea_sglang.hints import Hints
from astraea_sglang.patches.boundary import said, tools_called

END = "<|im_end|>"


class Letters:
    """Stands in for a tokenizer: a token is a character, its last one the end of the turn."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(END if id == 0 else chr(id) for id in ids)


def finished(text: str, *, ended: bool = True) -> Any:
    ids = [ord(letter) for letter in text] + [0] * ended
    reason = FINISH_MATCHED_TOKEN(0) if ended else FINISH_LENGTH(len(ids))
    return SimpleNamespace(rid="r", output_ids=ids, finished_reason=reason, tokenizer=Letters())


def called(text: str, *, parser="hermes", forced=False, tools=("search", "add"), ended=True):
    req = finished(text, ended=ended)
    return tools_called(req, said(req), Hints(tools=tools, forced=forced, parser=parser))


def hermes(*names: str) -> str:
    calls = (json.dumps({"name": name, "arguments": {"x": 1}}) for name in names)
    return "Let me see.\n" + "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


def listed(*names: str) -> str:
    return json.dumps([{"name": name, "parameters": {}} for name in names])


@pytest.mark.parametrize("names", [("search",), ("search", "add"), ("add", "add")])
def test_the_parsers_calls_are_the_pauses_tools(names):
    assert called(hermes(*names)) == names


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        ("qwen25", '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'),
        ("llama3", '<|python_tag|>{"name": "add", "parameters": {"x": 1}}'),
        ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {"x": 1}}]'),
        ("pythonic", "[add(x=1)]"),
    ],
)
def test_every_parser_of_sglang_will_do(parser, text):
    assert called(text, parser=parser) == ("add",)


@pytest.mark.parametrize("parser", ["pythonic", ""])
def test_forced_calls_are_a_list_where_the_parser_has_no_format_of_its_own(parser):
    assert called(listed("add", "search"), parser=parser, forced=True) == ("add", "search")
    assert called(hermes("add", "search"), parser="hermes", forced=True) == ("add", "search")


def test_an_answer_calls_nothing():
    assert called("It is 42.") == ()


def test_without_a_parser_a_client_sees_text_and_no_call():
    assert called(hermes("search"), parser="") == ()


def test_a_model_that_was_offered_no_tools_says_nothing_of_them():
    assert called(hermes("search"), tools=()) is None


@pytest.mark.parametrize(
    ("text", "forced"), [(listed("add")[:-5], True), ("[7]", True), ('<tool_call>\n{"name": "add"', False)]
)
def test_what_was_cut_off_or_is_no_call_tells_nothing_or_none(text, forced):
    assert called(text, forced=forced, ended=False) in (None, ())


def test_a_tool_that_was_not_offered_is_what_the_parser_makes_of_it():
    assert called(hermes("rm")) in ((), ("rm",))


def test_a_call_that_a_thought_quotes_is_none():
    assert called(f"<think>{hermes('search')}</think>It is 42.") == ()


@pytest.mark.parametrize("text", ["x" * 20_000, "<tool_call>\n" * 10_000])
def test_an_output_that_would_take_seconds_is_not_read(text):
    assert called(text, parser="qwen25") is None
