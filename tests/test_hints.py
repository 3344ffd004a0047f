import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.errors import HintError
from astraea_sglang.hints import ID_LENGTH, Hints, identity, parse, payload

FULL = {
    "program_id": "run-42",
    "program_class": "react",
    "segment": 3,
    "next_tool": "search",
    "expected_tool_duration_ms": 1500,
    "final": True,
    "parent_id": "run-1",
}


def test_every_field_is_read():
    assert parse(FULL) == Hints("run-42", "react", 3, "search", 1.5, True, "run-1")


def test_json_text_says_the_same_as_the_object():
    assert parse(json.dumps(FULL)) == parse(FULL)


def test_nothing_said_is_no_hints():
    assert parse({}) == Hints()


def test_unknown_keys_are_listed_not_refused():
    assert parse({"program_id": "a", "colour": 1, "mood": {}}).ignored == ("colour", "mood")


def test_orders_for_kv_are_left_to_the_intake():
    hints = parse({"program_id": "a", "kv": [{"type": "kv.pin"}]})
    assert hints.ignored == () and "kv" not in payload(hints)


def test_a_number_out_of_range_is_clipped_and_named():
    hints = parse({"expected_tool_duration_ms": 1e30, "segment": 10**400})
    assert hints.clipped == ("expected_tool_duration_ms", "segment")
    assert hints.expected_tool_s == 7 * 24 * 3600


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("program_id", 7),
        ("program_id", ""),
        ("program_id", "x" * (ID_LENGTH + 1)),
        ("program_id", "a\nb"),
        ("program_class", ["react"]),
        ("segment", -1),
        ("segment", 1.5),
        ("segment", True),
        ("next_tool", {"name": "search"}),
        ("expected_tool_duration_ms", float("nan")),
        ("expected_tool_duration_ms", "5"),
        ("final", "yes"),
        ("parent_id", "p" * 1000),
    ],
)
def test_a_malformed_field_is_named_in_one_line(key, value):
    with pytest.raises(HintError) as caught:
        parse({**FULL, key: value})
    assert str(caught.value).startswith(key) and "send" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("body", ["{not json", "[" * 100_000, '{"a": "' + "x" * 70_000 + '"}', 5, None, ["run-42"]])
def test_hints_that_are_no_object_are_refused(body):
    with pytest.raises(HintError, match="the astraea hints are"):
        parse(body)


@pytest.mark.parametrize("value", [None, 5, "", "x" * 257, "\0", ["a"]])
def test_an_identity_must_be_a_sane_string(value):
    with pytest.raises(HintError, match="session_id"):
        identity(value, "session_id")


names = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=20)
some_hints = st.builds(
    Hints,
    st.none() | names,
    names | st.just(""),
    st.none() | st.integers(0, 1000),
    st.none() | names,
    st.none() | st.integers(0, 1000).map(float),
    st.booleans(),
    st.none() | names,
)


@given(some_hints)
def test_hints_survive_the_way_to_the_scheduler(hints):
    assert parse(json.dumps(payload(hints))) == hints


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(sorted(FULL)) | st.text(), json_values) | json_values)
def test_whatever_arrives_is_hints_or_a_hint_error(body):
    try:
        hints = parse(body)
    except HintError:
        return
    assert hints.program_id is None or 1 <= len(hints.program_id) <= ID_LENGTH
