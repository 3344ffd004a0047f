import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.conventions import HEADERS, MOST_IGNORED, MOST_OFFERED, Offer, offer, owner, read
from astraea_sglang.errors import HintError
from astraea_sglang.hints import Hints


def found(headers=(), **body) -> tuple[str | None, str]:
    hints = read(dict(headers), body)
    return hints.program_id, hints.identity


def agent_hints(**told) -> dict:
    return {"agent_hints": told}


def nvext(**told) -> dict:
    return {"nvext": agent_hints(**told)}


@pytest.mark.parametrize("name", HEADERS)
def test_every_known_header_names_the_program(name):
    assert found({name: "run-42"}) == ("run-42", f"header {name}")


@pytest.mark.parametrize(
    ("body", "how"),
    [
        ({"program_id": "run-42"}, "body program_id"),
        ({"session_id": "run-42"}, "body session_id"),
        ({"agent_hint": {"session_id": "run-42"}}, "body agent_hint.session_id"),
        (nvext(prefix_id="run-42"), "body nvext.agent_hints.prefix_id"),
        (agent_hints(workflow_id="run-42"), "body agent_hints.workflow_id"),
    ],
)
def test_every_known_field_names_the_program(body, how):
    assert found(**body) == ("run-42", how)


def test_the_first_identity_of_the_documented_order_wins():
    body = {"program_id": "00", "session_id": "01", "agent_hint": {"session_id": "02"}, **nvext(prefix_id="98")}
    headers = {name: f"{10 + i}" for i, name in enumerate(HEADERS)}
    seen = []
    while (name := found(headers, **body)[0]) is not None:
        seen.append(name)
        for place in (body, headers):
            for key in [key for key, value in place.items() if name in str(value)]:
                del place[key]
    assert seen == ["00", "01", "02", *(f"{10 + i}" for i in range(len(HEADERS))), "98"]


def test_a_request_that_says_nothing_belongs_to_nobody():
    assert read({}, {"messages": []}) == Hints() and read({}, None) == Hints() and read({}, [1]) == Hints()


def test_a_batch_with_a_list_of_sessions_names_no_program():
    assert found(session_id=["a", "b"]) == (None, "")


@pytest.mark.parametrize(
    ("headers", "body", "parent"),
    [
        ({"x-dynamo-session-id": "c", "x-dynamo-parent-session-id": "p"}, {}, "p"),
        ({"x-session-id": "c", "x-parent-session-id": "p"}, {}, "p"),
        ({}, {"agent_hint": {"session_id": "c", "parent_session_id": "p"}}, "p"),
        ({"x-session-id": "c"}, {}, None),
    ],
)
def test_a_sub_agent_names_its_parent(headers, body, parent):
    assert read(headers, body).parent_id == parent


CLAUDE = {"x-claude-code-session-id": "s", "x-claude-code-agent-id": "a"}


def test_claude_codes_agents_are_children_of_their_session_or_of_an_agent():
    child = read(CLAUDE, {})
    assert (child.program_id, child.parent_id) == ("s:a", "s")
    grandchild = read(CLAUDE | {"x-claude-code-agent-id": "b", "x-claude-code-parent-agent-id": "a"}, {})
    assert (grandchild.program_id, grandchild.parent_id) == ("s:b", "s:a")


def test_an_agent_of_claude_code_whose_id_is_unusable_counts_as_its_session():
    hints = read(CLAUDE | {"x-claude-code-agent-id": "x" * 300}, {})
    assert hints.program_id == "s" and hints.ignored == ("x-claude-code-agent-id",)


@pytest.mark.parametrize(("text", "final"), [("true", True), (" True ", True), ("1", False), ("false", False)])
def test_the_final_header_says_true(text, final):
    assert read({"x-dynamo-session-final": text}, {}).final is final


def test_hints_of_dynamo_and_of_sglangs_rfc_are_taken():
    hints = read(
        {}, nvext(osl=64, priority=5) | agent_hints(agent_id="coder", expected_tool_duration_ms=1500, step_id="s")
    )
    assert hints == Hints(program_class="coder", expected_tool_s=1.5, node="s", osl=64.0, priority=5)
    assert hints.ignored == ()


def test_malformed_and_unknown_hints_are_ignored_by_name():
    hints = read({}, nvext(osl="many", priority=1.5, latency_sensitivity=1) | agent_hints(agent_id=7, reuse_hint="x"))
    assert hints == Hints()
    assert set(hints.ignored) == {
        "nvext.agent_hints.osl", "nvext.agent_hints.priority", "nvext.agent_hints.latency_sensitivity",
        "agent_hints.agent_id", "agent_hints.reuse_hint",
    }  # fmt: skip


def test_an_expected_length_beyond_all_bounds_is_clipped():
    hints = read({}, nvext(osl=10**12))
    assert hints.osl == 1_000_000 and hints.clipped == ("osl",)


@pytest.mark.parametrize(
    ("headers", "body", "named"),
    [
        ({"x-dynamo-session-id": "x" * 300}, {}, "X-Dynamo-Session-ID is 300 characters"),
        ({"x-dynamo-session-id": "s", "x-dynamo-parent-session-id": "\x7f"}, {}, "X-Dynamo-Parent-Session-ID holds"),
        ({}, {"session_id": 7}, "session_id is a number"),
        ({}, {"program_id": {"a": 1}}, "program_id is an object"),
    ],
)
def test_a_malformed_identity_in_a_field_of_engines_is_refused(headers, body, named):
    with pytest.raises(HintError, match=named):
        read(headers, body)


def test_a_malformed_identity_in_a_header_of_others_is_ignored_and_the_next_is_taken():
    hints = read({"x-session-id": "x" * 300, "x-correlation-id": "run-42"}, {})
    assert hints.program_id == "run-42" and hints.ignored == ("x-session-id",)


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
def test_an_owner_is_a_digest_of_the_key_however_it_comes(header):
    plain = owner({"authorization": "Bearer sk-1"})
    assert owner({header: "Bearer sk-1" if header == "authorization" else "sk-1"}) == plain
    assert plain and "sk-1" not in plain and owner({header: "Bearer sk-2"}) != plain and owner({}) == ""


def test_two_keys_in_one_request_are_neither_of_both_owners():
    both = owner({"authorization": "Bearer a", "x-api-key": "b"})
    assert both not in (owner({"authorization": "Bearer a"}), owner({"x-api-key": "b"}))
    assert owner({"authorization": "Bearer a", "x-api-key": "a"}) == owner({"x-api-key": "a"})


FUNCTION = {"type": "function", "function": {"name": "search"}}


@pytest.mark.parametrize(
    ("body", "offered"),
    [
        ({"tools": [FUNCTION]}, Offer(("search",))),
        ({"tools": [{"name": "search", "input_schema": {}}]}, Offer(("search",))),
        ({"tools": [{"type": "function", "name": "search"}], "tool_choice": "auto"}, Offer(("search",))),
        ({"tools": [FUNCTION], "tool_choice": "required"}, Offer(("search",), forced=True)),
        ({"tools": [FUNCTION], "tool_choice": FUNCTION}, Offer(("search",), forced=True)),
        ({"tools": [{"name": "search"}], "tool_choice": {"type": "any"}}, Offer(("search",), forced=True)),
        ({"tools": [{"name": "search"}], "tool_choice": {"type": "auto"}}, Offer(("search",))),
        ({"tools": [FUNCTION], "tool_choice": "none"}, Offer(())),
        ({"tools": [7, {"function": 7}, {"name": 7}, FUNCTION]}, Offer(("search",))),
        ({"tools": "search"}, Offer(())),
        (None, Offer(())),
    ],
)
def test_offered_tools_are_read_from_every_api(body, offered):
    assert offer(body) == offered


def test_of_very_many_tools_so_many_are_kept():
    assert len(offer({"tools": [FUNCTION] * 10_000}).tools) == MOST_OFFERED


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["program_id", "session_id", "nvext", "agent_hints", "agent_hint", "osl", "priority", "agent_id", "step_id"]
BODIES = st.recursive(JSON, lambda inner: st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4), max_leaves=8)


@given(BODIES, st.dictionaries(st.sampled_from([*HEADERS, "authorization"]), st.text(max_size=300), max_size=3))
def test_whatever_a_client_sends_is_hints_or_one_clear_error(body, headers):
    try:
        hints = read(headers, body)
    except HintError as error:
        assert "send" in str(error) and "\n" not in str(error)
    else:
        assert len(hints.ignored) <= MOST_IGNORED and (hints.program_id is None) == (hints.identity == "")
    assert offer(body) is not None and owner(headers) is not None
