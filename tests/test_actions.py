import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.actions import (
    KINDS,
    MAX_TOKENS,
    MOST_ACTIONS,
    MOST_BLOCKS,
    KvAction,
    Outcome,
    cache_control,
    check,
    parse,
)
from astraea_sglang.errors import HintError


def test_every_field_is_read():
    assert parse("kv.pin", {"ttl_s": 30, "tokens": 4096}, "turn-17") == KvAction("turn-17", "kv.pin", 30.0, 4096)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out_is_left_to_the_server(kind):
    assert parse(kind, {}, "a") == parse(kind, {"ttl_s": None, "tokens": None}, "a") == KvAction("a", kind)


def test_unknown_keys_are_ignored():
    assert parse("kv.demote", {"session_id": "s", "colour": {}}, "a") == KvAction("a", "kv.demote")


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30.0), ("5m", 300.0), ("1h", 3600.0)])
def test_a_ttl_may_be_spelt_as_anthropic_does(text, seconds):
    assert parse("kv.retain", {"ttl": text}, "a").ttl_s == seconds


def test_a_ttl_in_seconds_wins_over_one_in_words():
    assert parse("kv.retain", {"ttl_s": 7, "ttl": "1h"}, "a").ttl_s == 7.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ttl_s", 0),
        ("ttl_s", -1),
        ("ttl_s", True),
        ("ttl_s", "30"),
        ("ttl_s", math.nan),
        ("ttl_s", math.inf),
        pytest.param("ttl_s", 10**5000, id="ttl_s huge"),
        ("ttl", 300),
        ("ttl", "0s"),
        ("ttl", "5 m"),
        ("ttl", "1d"),
        ("ttl", "5m\n"),
        pytest.param("ttl", "9" * 100_000 + "s", id="ttl long"),
        ("tokens", 0),
        ("tokens", -5),
        ("tokens", 1.5),
        ("tokens", True),
        ("tokens", "many"),
        pytest.param("tokens", 10**5000, id="tokens huge"),
        ("tokens", [[[]]]),
    ],
)
def test_a_malformed_field_is_named_in_one_line(key, value):
    with pytest.raises(HintError) as caught:
        parse("kv.pin", {key: value}, "turn-17")
    line = str(caught.value)
    assert line.startswith(f"{key} of kv.pin 'turn-17' is ") and "; send " in line
    assert "\n" not in line and len(line) < 400


@pytest.mark.parametrize("payload", [None, 5, "30s", ["ttl_s", 30]])
def test_a_payload_must_be_an_object(payload):
    with pytest.raises(HintError, match=r"the payload of kv.pin 'a' is .*; send an object"):
        parse("kv.pin", payload, "a")


@pytest.mark.parametrize("kind", [None, "kv.pinn", "", 3, ["kv.pin"], pytest.param("kv.pin" * 10_000, id="long")])
def test_an_unknown_type_is_answered_with_the_known_ones(kind):
    with pytest.raises(HintError, match=r"^type is .*; send one of kv.pin, kv.retain") as caught:
        parse(kind, {}, "a")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("id", [None, "", 7, "x" * 257, "a\nb"])
def test_an_id_must_be_a_sane_string(id):
    with pytest.raises(HintError, match=r"the id of kv.pin"):
        parse("kv.pin", {}, id)


def test_a_request_holds_no_more_actions_than_may_be():
    action = ("kv.pin", {"ttl_s": 1}, "a")
    check([action] * MOST_ACTIONS)
    with pytest.raises(HintError, match="more than 16 kv actions; send at most 16"):
        check([action] * (MOST_ACTIONS + 1))


def test_one_malformed_action_among_many_is_found():
    with pytest.raises(HintError, match=r"tokens of kv.retain 'b'"):
        check([("kv.pin", {}, "a"), ("kv.retain", {"tokens": 0}, "b")])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
durations = st.from_regex("[0-9]{1,12}[smhd]?", fullmatch=True)
payloads = st.fixed_dictionaries(
    {},
    optional={
        "ttl_s": st.floats() | st.integers() | json_values,
        "ttl": durations | json_values,
        "tokens": st.integers() | json_values,
    },
)


@given(st.sampled_from(KINDS) | json_values, payloads | json_values, st.just("a") | json_values)
def test_whatever_arrives_is_an_order_within_range_or_a_hint_error(kind, payload, id):
    try:
        action = parse(kind, payload, id)
    except HintError as error:
        assert "; send " in str(error) and "\n" not in str(error)
        return
    assert action.kind in KINDS and 1 <= len(action.id) <= 256
    assert action.ttl_s is None or (type(action.ttl_s) is float and 0 < action.ttl_s < math.inf)
    assert action.tokens is None or (type(action.tokens) is int and 1 <= action.tokens <= MAX_TOKENS)


def test_an_outcome_is_told_without_what_it_leaves_open():
    assert Outcome("a", "kv.pin", "accepted").payload() == {"id": "a", "kind": "kv.pin", "status": "accepted"}
    full = Outcome("a", "kv.pin", "clipped", "at most 60 s", 60.0, 0)
    assert json.loads(json.dumps(full.payload())) == {
        "id": "a", "kind": "kv.pin", "status": "clipped", "why": "at most 60 s", "ttl_s": 60.0, "tokens": 0,
    }  # fmt: skip


EPHEMERAL = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}


def block(control, text="hello"):
    return {"type": "text", "text": text, "cache_control": control}


@pytest.mark.parametrize(
    "body",
    [
        {"cache_control": HOUR},
        {"system": [block(HOUR)]},
        {"tools": [{"name": "search", "cache_control": HOUR}]},
        {"messages": [{"role": "user", "content": [block(HOUR)]}, {"role": "assistant", "content": "hm"}]},
    ],
    ids=["top", "system", "tools", "messages"],
)
def test_cache_control_is_found_where_anthropic_has_it(body):
    assert cache_control(body) == KvAction("cache_control", "kv.retain", 3600.0)


def test_cache_control_without_a_ttl_is_five_minutes():
    assert cache_control({"system": [block(EPHEMERAL)]}) == KvAction("cache_control", "kv.retain", 300.0)


def test_the_longest_ttl_counts():
    body = {"system": [block(EPHEMERAL), block(HOUR)], "messages": [{"content": [block({**EPHEMERAL, "ttl": "30s"})]}]}
    assert cache_control(body) == KvAction("cache_control", "kv.retain", 3600.0)


@pytest.mark.parametrize(
    "control",
    [None, "ephemeral", [], {}, {"type": "persistent"}, {"type": ["ephemeral"]}, {**EPHEMERAL, "ttl": 300}]
    + [{**EPHEMERAL, "ttl": text} for text in ("", "0m", "-5m", "forever")],
)
def test_malformed_cache_control_is_skipped(control):
    assert cache_control({"cache_control": control, "system": [block(control)]}) is None
    assert cache_control({"cache_control": control, "system": [block(EPHEMERAL)]}) is not None


@pytest.mark.parametrize("body", [None, [], "text", {"system": "be brief", "tools": {}, "messages": [None, 5, {}]}])
def test_a_body_without_cache_control_asks_for_nothing(body):
    assert cache_control(body) is None


def test_cache_control_is_sought_nowhere_else():
    inner = {"input": {"cache_control": EPHEMERAL}, "content": [block(EPHEMERAL)]}
    assert cache_control({"metadata": {"cache_control": EPHEMERAL}, "messages": [{"content": [inner]}]}) is None


MANY = 2 * MOST_BLOCKS
FIRST = {"content": [block(EPHEMERAL)]}


@pytest.mark.parametrize(
    "body",
    [
        {"system": [*[{}] * MANY, block(EPHEMERAL)]},
        {"messages": [FIRST, *[{"content": "x"}] * MANY]},
        {"messages": [FIRST, *[{"content": []}] * MANY]},
        {"messages": [FIRST, *[None] * MANY]},
        {"messages": [FIRST, {"content": [{}] * MANY}]},
    ],
    ids=["blocks", "messages", "empty messages", "no messages", "one message"],
)
def test_only_so_many_blocks_are_looked_at_the_last_message_first(body):
    assert cache_control(body) is None
    assert cache_control({"messages": [*body.get("messages", []), FIRST]}) is not None


def test_depth_costs_nothing():
    deep = {}
    for _ in range(100_000):
        deep = {"content": [deep]}
    assert cache_control({"messages": [FIRST, deep]}) is not None


@given(json_values)
def test_no_body_breaks_the_search_for_cache_control(value):
    body = {"cache_control": value, "system": value, "tools": [value], "messages": [{"content": value}, value]}
    assert cache_control(body) is None
