"""Requests of clients that know nothing of us, on a real server: who they are, what they call, when they end."""

import json

import httpx
import pytest

from tests.server.test_programs import finished, generate, row, state

pytestmark = pytest.mark.server
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"the {name} of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            "strict": True,
        },
    }
    for name in ("population", "weather")
]


def chat(client: httpx.Client, messages: list[dict], headers=(), **body) -> httpx.Response:
    reply = client.post(
        "/v1/chat/completions",
        json={"model": "m", "messages": messages, "temperature": 0, "max_tokens": 48} | body,
        headers=dict(headers),
    )
    assert reply.status_code == 200, reply.text
    return reply


def call(client: httpx.Client, messages: list[dict], **body) -> tuple[list[dict], list[str], httpx.Response]:
    """Let the model call tools, and run them: the messages then, and the tools."""
    reply = chat(client, messages, tools=TOOLS, tool_choice="required", **body)
    message = reply.json()["choices"][0]["message"]
    calls = message["tool_calls"]
    assert all("city" in json.loads(made["function"]["arguments"]) for made in calls)
    results = [{"role": "tool", "tool_call_id": made["id"], "content": "68 million"} for made in calls]
    return [*messages, message, *results], [made["function"]["name"] for made in calls], reply


def question(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def named(reply: httpx.Response) -> tuple[str | None, str | None]:
    return reply.headers.get("x-astraea-program"), reply.headers.get("x-astraea-identity")


def counts(client: httpx.Client) -> dict:
    return state(client)["ranks"][0]["counts"]


def test_an_agent_that_says_nothing_is_one_program_with_its_tools_and_its_end(client):
    messages, tools, first = call(client, question("How many people live in Paris?"))
    assert named(first) == (None, None)
    (paused,) = (p for p in state(client)["ranks"][0]["programs"] if p["identity"] == "prompt" and p["segments"] == 1)
    assert (paused["state"], paused["running_tools"]) == ("TOOL_WAIT", tools)
    messages, more, second = call(client, messages)
    assert named(second) == (paused["id"], "prompt")
    last = chat(client, messages, tools=TOOLS, tool_choice="auto", max_tokens=4)
    assert named(last) == (paused["id"], "prompt")
    over = finished(client, paused["id"]) or {}
    assert (over["why"], over["segments"], over["tools"]) == ("answered", 3, [*tools, *more])


def test_a_stream_says_whose_it_is_before_its_first_token(client):
    messages, _, _ = call(client, question("How many people live in Lyon?"))
    body = {"model": "m", "messages": messages, "tools": TOOLS, "max_tokens": 4, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert named(reply)[1] == "prompt"
        assert any(line.startswith("data:") for line in reply.iter_lines())


def test_an_agent_with_a_session_header_is_known_by_it_and_goes_on_after_an_answer(client):
    headers = {"x-session-id": "open code 1"}
    messages, tools, first = call(client, question("How many people live in Rome?"), headers=headers)
    assert named(first) == ("open%20code%201", "header x-session-id")
    chat(client, messages, tools=TOOLS, max_tokens=4, headers=headers)
    seen = row(client, "open code 1") or {}
    assert (seen["segments"], seen["tools"], seen["running_tools"]) == (2, tools, [])
    assert seen["state"] == "TOOL_WAIT" and seen["next_tool"] is None  # its user thinks
    chat(client, messages, headers={**headers, "x-dynamo-session-final": "true"}, max_tokens=1)
    assert (finished(client, "open code 1") or {})["why"] == "final"


def test_anthropics_api_names_tools_too(client):
    body = {
        "model": "m",
        "max_tokens": 48,
        "temperature": 0,
        "messages": question("How many people live in Oslo?"),
        "tools": [{"name": "population", "input_schema": TOOLS[0]["function"]["parameters"]}],
        "tool_choice": {"type": "tool", "name": "population"},
    }
    headers = {"x-claude-code-session-id": "cc", "x-claude-code-agent-id": "a1", "x-api-key": "sk-1"}
    reply = client.post("/v1/messages", json=body, headers=headers)
    assert reply.status_code == 200, reply.text
    assert [part["name"] for part in reply.json()["content"] if part["type"] == "tool_use"] == ["population"]
    seen = row(client, "cc:a1") or {}
    assert (seen["tools"], seen["parent_id"]) == (["population"], "cc")


def test_hints_of_dynamo_are_taken_and_said_to_be(client):
    hints = {"agent_hints": {"osl": 32, "priority": 2, "mood": "good"}}
    reply = chat(client, question("Hello"), session_id="hinted", nvext=hints, max_tokens=2)
    assert reply.headers["x-astraea-hints"] == "accepted=osl,priority; ignored=nvext.agent_hints.mood"


def test_the_answer_of_generate_says_what_was_taken(client):
    told = generate(client, session_id="told").json()["meta_info"]["astraea_program"]
    assert told == {"program_id": "told", "identity": "body session_id"}


def test_two_keys_have_two_programs_of_one_name(client):
    for key, times in (("sk-1", 1), ("sk-2", 2)):
        for _ in range(times):
            generate_as(client, key, session_id="same")
    seen = sorted(p["segments"] for p in state(client)["ranks"][0]["programs"] if p["id"] == "same")
    assert seen == [1, 2]
    assert event(client, "program_end", "same", "sk-3").json() == {"ended": False}
    assert event(client, "program_end", "same", "sk-2").json() == {"ended": True}
    assert (finished(client, "same") or {})["segments"] == 2 and (row(client, "same") or {})["segments"] == 1


def generate_as(client: httpx.Client, key: str, **body) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    params = {"temperature": 0, "max_new_tokens": 2}
    reply = client.post("/generate", json={"text": "One two", "sampling_params": params, **body}, headers=headers)
    assert reply.status_code == 200


def event(client: httpx.Client, kind: str, program: str, key: str = "", **more) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return client.post("/astraea/events", json={"event": kind, "program_id": program, **more}, headers=headers)


def test_a_harness_tells_of_its_tools_and_the_pause_ends_when_all_are_over(client):
    generate(client, session_id="harness")
    for id, tool in (("1", "search"), ("2", "add")):
        assert event(client, "tool_started", "harness", id=id, tool=tool).json() == {"started": True}
    assert event(client, "tool_started", "harness", id="1", tool="search").json() == {"started": False}
    seen = row(client, "harness") or {}
    assert (seen["running_tools"], seen["next_tool"]) == (["search", "add"], "add+search")
    ends = [event(client, "tool_finished", "harness", id=id).json() for id in ("2", "2", "1")]
    assert [end["finished"] for end in ends] == [False, False, True] and ends[-1]["running_tools"] == []


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"event": "tool_started", "program_id": "harness"}, 400, "tool is null"),
        ({"event": "tool_started", "program_id": "x", "tool": "t" * 300}, 400, "tool is 300 characters"),
        ({"event": "tool_started", "program_id": "x", "tool": "t", "expected_tool_duration_ms": -1}, 400, "0 or more"),
        ({"event": "tool_begun", "program_id": "x"}, 400, "tool_started"),
        ({"event": "tool_finished", "program_id": "nobody"}, 200, "nobody"),
        ({"event": "program_end", "program_id": "nobody"}, 200, "false"),
    ],
)
def test_a_bad_event_is_refused_or_counted(client, body, status, says):
    before = counts(client)
    reply = client.post("/astraea/events", json=body)
    assert reply.status_code == status and says in reply.text
    if status == 200:
        key = "unknown_ends" if body["event"] == "program_end" else "unknown_events"
        assert counts(client)[key] == before.get(key, 0) + 1


def test_ten_megabytes_of_hints_are_an_error_or_nothing_and_the_server_lives(client):
    text = "x" * 10_000_000
    refused = generate(client, sampling_params={"custom_params": {"astraea": text}})
    assert refused.status_code == 400 and "send at most" in refused.text
    ignored = chat(client, question("Hello"), nvext={"agent_hints": {text: 1, "osl": text}}, max_tokens=1)
    assert len(ignored.headers["x-astraea-hints"]) < 1100
    assert generate(client, session_id="after").status_code == 200


def test_a_name_with_line_breaks_never_becomes_a_header(client):
    reply = client.post("/generate", json={"text": "a", "session_id": "a\r\nx-evil: 1"})
    assert reply.status_code == 400 and "unprintable" in reply.text
    reply = generate(client, session_id="ü: 1")
    assert reply.headers["x-astraea-program"] == "%C3%BC%3A%201"


def test_the_responses_api_names_its_program_and_tools_too(client):
    tool = {"type": "function", **TOOLS[0]["function"]}
    model = client.get("/v1/models").json()["data"][0]["id"]
    body = {"model": model, "input": "How many people live in Bern?", "tools": [tool], "tool_choice": "required"}
    reply = client.post(
        "/v1/responses", json=body | {"max_output_tokens": 48, "temperature": 0}, headers={"session-id": "codex"}
    )
    assert reply.status_code == 200, reply.text
    assert named(reply) == ("codex", "header session-id")
    assert (row(client, "codex") or {})["identity"] == "header session-id"


def test_a_final_marker_of_an_unknown_program_ends_it_with_that_request(client):
    chat(client, question("Bye"), headers={"x-dynamo-session-id": "late", "x-dynamo-session-final": "true"})
    over = finished(client, "late") or {}
    assert (over["why"], over["segments"]) == ("final", 1)


def test_events_reach_a_program_that_no_client_named_by_the_id_it_was_given(client):
    _, tools, _ = call(client, question("How many people live in Kyiv?"))
    paused = max(state(client)["ranks"][0]["programs"], key=lambda p: -p["age_s"])  # the youngest
    assert paused["running_tools"] == tools
    assert event(client, "tool_finished", paused["id"]).json()["finished"]
    assert event(client, "program_end", paused["id"]).json() == {"ended": True}
