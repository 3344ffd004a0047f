import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from astraea_sglang.bench import record, traces
from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan
from astraea_sglang.bench.recording import Caller, Recording, Tally, Usage, caller
from astraea_sglang.errors import ConfigError

ACTIONS = {
    "actions": [{"action_type": "kv.pin"}, {"action_type": "astraea.program", "payload": {"program_id": "hint"}}]
}


def call(recording: Recording, begun: float, ended: float, who: str | Caller | None = "p", *usages: Usage) -> None:
    asked = who if isinstance(who, Caller) else Caller(who)
    recording.ended(recording.begun(asked, begun), ended, usages or (Usage(100, 10),))


def plans(recording: Recording, *, trees: bool = False) -> dict[str, ProgramPlan]:
    return {plan.id: plan for plan in recording.recorded(trees=trees).plans}


def usages(*chunks: bytes, streamed: bool = True, body_length: int = 400) -> list[Usage]:
    tally = Tally(streamed, body_length)
    for chunk in chunks:
        tally.feed(chunk)
    return tally.usages()


def event(value: dict) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("headers", "body", "program", "parent"),
    [
        ({}, {}, None, None),
        ({}, None, None, None),
        ({"x-session-id": "h"}, {"kv_hints": ACTIONS, "session_id": "s"}, "hint", None),
        ({}, {"sampling_params": {"custom_params": {"astraea": {"program_id": "c"}}}, "session_id": "s"}, "c", None),
        ({}, {"custom_params": {"astraea": '{"program_id": "c", "parent_id": "up"}'}}, "c", "up"),
        ({"x-dynamo-session-id": "h"}, {"session_id": "s"}, "s", None),
        ({"x-dynamo-session-id": "d", "x-claude-code-session-id": "c"}, {}, "d", None),
        ({"x-claude-code-session-id": "c", "session-id": "i"}, {}, "c", None),
        ({"session-id": "i", "x-session-id": "x"}, {}, "i", None),
        ({"x-session-id": "x", "x-correlation-id": "k", "x-parent-session-id": "up"}, {}, "x", "up"),
        ({"x-correlation-id": "k"}, {}, "k", None),
        ({"x-dynamo-session-id": "d", "x-dynamo-parent-session-id": "up"}, {}, "d", "up"),
        ({"x-dynamo-session-id": "d", "x-dynamo-parent-session-id": "d"}, {}, "d", None),
        ({"x-claude-code-session-id": "c", "x-claude-code-agent-id": "a"}, {}, "c:a", "c"),
        (
            {"x-claude-code-session-id": "c", "x-claude-code-agent-id": "a", "x-claude-code-parent-agent-id": "b"},
            {}, "c:a", "c:b",
        ),
        ({"x-session-id": "x"}, {"custom_params": {"astraea": "no json"}, "session_id": ""}, None, None),
        ({"x-dynamo-session-id": "a" * 257, "x-session-id": "x"}, {"kv_hints": [ACTIONS], "session_id": 7}, None, None),
    ],
)  # fmt: skip
def test_a_request_names_its_program_by_hints_then_session_then_headers(headers, body, program, parent):
    assert caller(headers, body)[:2] == (program, parent)


def test_hints_name_class_and_tool_too():
    told = {"program_id": "p", "program_class": "react", "next_tool": "search"}
    assert caller({}, {"custom_params": {"astraea": told}}) == Caller("p", None, "react", "search")


OPENAI = {"prompt_tokens": 90, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 64}}
ANSWERS = {
    "chat": {"choices": [{"message": {"content": "x"}}], "usage": OPENAI},
    "generate": {"text": "x", "meta_info": {"prompt_tokens": 90, "completion_tokens": 7, "cached_tokens": 64}},
    "messages": {"type": "message", "usage": {"input_tokens": 26, "output_tokens": 7, "cache_read_input_tokens": 64}},
    "responses": {
        "output": [],
        "usage": {"input_tokens": 90, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 64}},
    },
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_tokens_of_an_answer_are_those_the_server_tells(answer):
    assert usages(json.dumps(answer).encode(), streamed=False) == [Usage(90, 7, 64)]


STREAMS = {
    "chat": [{"choices": [{"delta": {"content": "x"}}]}, {"choices": [], "usage": OPENAI}],
    "generate": [{"meta_info": {"prompt_tokens": 90, "completion_tokens": n, "cached_tokens": 64}} for n in (1, 3, 7)],
    "messages": [
        {"type": "message_start", "message": {"usage": {"input_tokens": 26, "cache_read_input_tokens": 64}}},
        {"type": "content_block_delta", "delta": {"text": "x"}},
        {"type": "message_delta", "usage": {"output_tokens": 7, "input_tokens": 26}},
    ],
    "responses": [
        {"type": "response.output_text.delta"},
        {"type": "response.completed", "response": ANSWERS["responses"]},
    ],
}  # fmt: skip


@pytest.mark.parametrize("chunks", STREAMS.values(), ids=STREAMS)
def test_tokens_of_a_stream_are_those_of_the_last_chunk_that_tells_them(chunks):
    sent = b"".join(event(chunk) for chunk in chunks) + b"data: [DONE]\n\n"
    assert usages(sent) == [Usage(90, 7, 64)]
    assert usages(*(bytes([byte]) for byte in sent)) == [Usage(90, 7, 64)]


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [{"delta": {"content": "x"}}]},
        {"choices": [{"delta": {"reasoning_content": "x"}}]},
        {"choices": [{"text": "x"}]},
        {"type": "content_block_delta", "delta": {"text": "x"}},
        {"type": "response.output_text.delta", "delta": "x"},
    ],
)
def test_chunks_with_content_are_counted_where_a_stream_tells_no_tokens(chunk):
    empty = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}, {"type": "message_stop"}]
    assert usages(*map(event, [chunk, chunk, chunk, *empty])) == [Usage(100, 3, 0, estimated=True)]


def test_an_answer_without_tokens_or_cut_off_is_no_generation():
    assert usages(b'{"usage": {"prompt_tok', streamed=False) == []
    assert usages(event({"error": {"message": "no"}})) == []
    assert usages(b'[3, {"meta_info": {"prompt_tokens": 4, "completion_tokens": 0}}]', streamed=False) == []


def test_a_batch_has_the_tokens_of_each_of_its_generations():
    told = [{"meta_info": {"prompt_tokens": n, "completion_tokens": 2}} for n in (5, 6)]
    assert usages(json.dumps(told).encode(), streamed=False) == [Usage(5, 2), Usage(6, 2)]
    assert usages(*(event({"index": i} | one) for i, one in enumerate(told))) == [Usage(5, 2), Usage(6, 2)]


def test_a_programs_requests_become_its_segments_and_the_time_between_them_its_tools():
    recording = Recording()
    call(recording, 50, 52, Caller("p", None, "react", "search"), Usage(100, 10))
    call(recording, 50.5, 51, None, Usage(7, 3))
    call(recording, 53.5, 54, Caller("p"), Usage(150, 20))
    call(recording, 54, 56, Caller("p"), Usage(80, 5, cached=60))
    first, second = SegmentPlan(100, 10, 1.5, "search"), SegmentPlan(40, 20, 0.0, "tool")
    assert recording.recorded(trees=False).plans == [
        ProgramPlan("p", "react", 0.0, 32, (first, second, SegmentPlan(20, 5, 0.0, None, kept=60))),
        ProgramPlan("request-1", "recorded", 0.5, 4, (SegmentPlan(7, 3, 0.0, None),)),
    ]


def test_requests_that_name_no_program_are_chained_as_the_server_found_them():
    recording = Recording()
    first = recording.begun(Caller(None), 0)
    recording.ended(first, 1, [Usage(100, 10)], id="r1")
    call(recording, 1.5, 2, None)
    second = recording.begun(Caller(None), 3)
    recording.ended(second, 4, [Usage(120, 10)], id="r2", program="r1")
    named = recording.begun(Caller("p"), 5)
    recording.ended(named, 6, [Usage(1, 1)], id="r3", program="other")
    assert {id: len(plan.segments) for id, plan in plans(recording).items()} == {"r1": 2, "request-1": 1, "p": 1}


def test_a_server_that_calls_all_requests_alike_chains_none():
    recording = Recording()
    for begun in range(3):
        recording.ended(recording.begun(Caller(None), begun), begun + 0.5, [Usage(100, 10)], id="same")
    assert [len(plan.segments) for plan in plans(recording).values()] == [1, 1, 1]


def test_a_shorter_prompt_keeps_nothing_unless_the_server_says_so_and_never_all():
    recording = Recording()
    for usage in (Usage(100, 10), Usage(90, 10), Usage(80, 10, cached=80)):
        call(recording, 0, 0, "p", usage)
    assert [s.kept for s in plans(recording)["p"].segments] == [None, 0, 79]


def test_what_a_plan_cannot_hold_is_counted():
    recording = Recording()
    call(recording, 0, 5)
    call(recording, 1, 2)
    call(recording, 3, 4, "batch", Usage(1, 1), Usage(2, 2))
    recording.ended(recording.begun(Caller("gone"), 6), 7, [])
    recording.begun(Caller("open"), 8)
    call(recording, 9, 10, "guess", Usage(1, 1, estimated=True))
    done = recording.recorded(trees=True)
    assert [plan.id for plan in done.plans] == ["p", "p+1", "batch+2.0", "batch+2.1", "guess"]
    assert done.notes == {
        "beside another request of their program": 1, "batches": 1, "failed or empty": 1, "without token counts": 1,
    }  # fmt: skip


def family(child_ends: float) -> Recording:
    recording = Recording()
    call(recording, 0, 2)
    call(recording, 3, 4, Caller("kid", "p"))
    call(recording, 5, child_ends, Caller("kid", "p"))
    call(recording, 10, 11)
    return recording


def test_a_child_session_begins_after_its_parents_segment_which_waits_for_it():
    both = plans(family(9), trees=True)
    assert both["p"].segments[0] == SegmentPlan(100, 10, 1.0, "tool", ("kid",))
    assert (both["kid"].parent, both["kid"].arrival_s, both["kid"].segments[0].tool_s) == ("p", 1.0, 1.0)


@pytest.mark.parametrize(("recording", "trees"), [(family(9), False), (family(10.5), True)])
def test_a_child_session_nobody_waits_for_or_that_a_format_cannot_hold_is_a_program_of_its_own(recording, trees):
    both = plans(recording, trees=trees)
    assert both["kid"].parent is None and both["kid"].arrival_s == 3.0
    assert both["p"].segments[0].spawns == () and both["p"].segments[0].tool_s == 8.0


def test_a_parent_that_came_later_or_never_is_none():
    recording = Recording()
    call(recording, 0, 1, Caller("kid", "p"))
    call(recording, 1, 2, Caller("p", "kid"))
    call(recording, 2, 3, Caller("other", "nobody"))
    assert [plan.parent for plan in recording.recorded(trees=True).plans] == [None, "kid", None]


events = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from([None, *"abcd"]), st.integers(0, 9), st.integers(1, 3000)),
    min_size=1,
    max_size=30,
)


@pytest.mark.parametrize("format", record.FORMATS)
@given(events)
def test_whatever_is_recorded_can_be_written_and_read(format, happened):
    recording, now = Recording(), 0.0
    running: list[tuple[int, int]] = []
    for id, parent, gap, tokens in happened:
        now += gap / 7
        running.append((recording.begun(Caller(id, parent if parent != id else None), now), tokens))
        if gap % 2:
            for number, prompt in running:
                recording.ended(number, now + gap / 9, [Usage(prompt, 1 + prompt % 9, prompt // 2)])
            running, now = [], now + gap / 9
    done = recording.recorded(trees=format == "dynamo").plans
    assert sum(len(plan.segments) for plan in done) == len(happened) - len(running)
    if done:
        module = traces._module(format)
        again = {plan.id: plan for plan in module.read("f", module.write(done))}
        for plan in done:
            assert again[plan.id].parent == plan.parent
            assert list(again[plan.id].prompts()) == list(plan.prompts())
            assert [s[1:3] for s in again[plan.id].segments] == [s[1:3] for s in plan.segments]


# A stand-in for a model server: it answers at once, in bytes that a proxy could spoil.
PACKED = gzip.compress(json.dumps(ANSWERS["chat"]).encode())


async def _chat(request: Request) -> Response:
    headers = {"content-encoding": "gzip", "x-seen": f"{request.method} {request.url} {await request.body()!r}"}
    return Response(PACKED, headers=headers, media_type="application/json")


async def _stream(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for chunk in STREAMS["generate"]:
            yield event(chunk)

    return StreamingResponse(chunks(), media_type="text/event-stream")


async def _found(request: Request) -> Response:
    headers = {"x-astraea-program": "a%20b", "x-astraea-identity": "prompt"}
    return JSONResponse({"id": "cmpl-2", **ANSWERS["chat"]}, headers=headers)


async def _refused(request: Request) -> Response:
    return JSONResponse({"error": "busy", **ANSWERS["messages"]}, 429, headers={"retry-after": "3"})


async def _echo(request: Request) -> Response:
    return JSONResponse({"headers": [[k.decode(), v.decode()] for k, v in request.headers.raw]})


STAND_IN = Starlette(
    routes=[
        Route("/v1/chat/completions", _chat, methods=["POST"]),
        Route("/generate", _stream, methods=["POST"]),
        Route("/v1/completions", _found, methods=["POST"]),
        Route("/v1/messages", _refused, methods=["POST"]),
        Route("/echo/{rest:path}", _echo),
    ]
)


def through(recording: Recording, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    ticks: Iterator[int] = count()
    clock = lambda: float(next(ticks))  # noqa: E731
    upstream = transport or httpx.ASGITransport(STAND_IN)
    proxy = record.Proxy(httpx.URL("http://model:30000"), recording, upstream, clock)
    return httpx.AsyncClient(transport=httpx.ASGITransport(proxy), base_url="http://proxy")  # type: ignore[arg-type]


def test_answers_pass_byte_for_byte_and_are_recorded():
    async def talk(recording: Recording) -> list[tuple[httpx.Response, bytes]]:
        async with through(recording) as client:
            asked = [("/v1/chat/completions?a=%2F", {"session_id": "p"}), ("/generate", {"session_id": "p"})]
            got = []
            for path, body in [*asked, ("/v1/messages", {}), ("/echo/x", {})]:
                method = "GET" if path.startswith("/echo") else "POST"
                async with client.stream(method, path, json=body) as answer:
                    got.append((answer, b"".join([part async for part in answer.aiter_raw()])))
            return got

    recording = Recording()
    (chat, raw), (_, streamed), (refused, _), (echo, _) = asyncio.run(talk(recording))
    assert raw == PACKED and chat.headers["content-encoding"] == "gzip"
    assert chat.headers["x-seen"] == """POST http://model:30000/v1/chat/completions?a=%2F b'{"session_id":"p"}'"""
    assert streamed == b"".join(event(chunk) for chunk in STREAMS["generate"])
    assert refused.status_code == 429 and refused.headers["retry-after"] == "3" and echo.status_code == 200
    done = recording.recorded(trees=False)
    assert [(s.new_prompt, s.output, s.tool_s) for s in done.plans[0].segments] == [(90, 7, 1.0), (26, 7, 0.0)]
    assert len(done.plans) == 1 and done.notes == {"failed or empty": 1}


def test_a_program_that_only_the_server_knows_is_read_from_its_answer():
    async def talk(recording: Recording) -> None:
        async with through(recording) as client:
            await client.post("/v1/completions", json={})

    recording = Recording()
    asyncio.run(talk(recording))
    assert list(plans(recording)) == ["a b"]


def test_headers_pass_but_for_those_of_the_connection():
    async def talk() -> dict[str, str]:
        async with through(Recording()) as client:
            sent = {"Authorization": "Bearer x", "X-Odd": "1", "Connection": "close", "Accept-Encoding": "br"}
            return dict((await client.get("/echo/y", headers=sent)).json()["headers"])

    got = asyncio.run(talk())
    assert got.items() >= {"authorization": "Bearer x", "x-odd": "1", "accept-encoding": "br"}.items()
    assert "connection" not in got and got["host"] == "model:30000"


class Dead(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)


def test_a_dead_upstream_is_told_to_the_client_and_not_recorded():
    async def talk(recording: Recording) -> httpx.Response:
        async with through(recording, Dead()) as client:
            return await client.post("/generate", json={"session_id": "p"})

    recording = Recording()
    answer = asyncio.run(talk(recording))
    assert answer.status_code == 502
    assert answer.json()["error"]["message"] == (
        "astraea bench record: http://model:30000 does not answer (ConnectError: connection refused); "
        "start the server, or give its address with --upstream"
    )
    assert recording.recorded(trees=False).plans == []


class Broken(httpx.AsyncBaseTransport, httpx.AsyncByteStream):
    """A stand-in for a server that goes away in the middle of an answer."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield event(STREAMS["generate"][1])
        raise httpx.ReadError("connection reset")


def test_an_answer_that_breaks_off_breaks_off_for_the_client_and_counts_as_far_as_it_came():
    async def talk(recording: Recording) -> None:
        async with through(recording, Broken()) as client:
            await client.post("/generate", json={"session_id": "p"})

    recording = Recording()
    with pytest.raises(httpx.ReadError):
        asyncio.run(talk(recording))
    assert plans(recording)["p"].segments == (SegmentPlan(90, 3, 0.0, None),)


class Slow(httpx.AsyncBaseTransport, httpx.AsyncByteStream):
    """A stand-in for a server in the middle of a generation: one token, then silence."""

    def __init__(self) -> None:
        self.closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield event(STREAMS["generate"][0])
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed = True


def test_a_chunk_passes_at_once_and_a_client_that_leaves_ends_the_generation():
    async def talk(recording: Recording, upstream: Slow) -> list[dict]:
        proxy = record.Proxy(httpx.URL("http://model"), recording, upstream)
        first, sent = asyncio.Event(), []
        messages = iter([{"type": "http.request", "body": b'{"session_id": "p"}'}])

        async def receive() -> dict:
            if (message := next(messages, None)) is None:
                await first.wait()
                return {"type": "http.disconnect"}
            return message

        async def send(message) -> None:
            sent.append(message)
            if message.get("body"):
                first.set()

        scope = {"type": "http", "method": "POST", "path": "/generate", "query_string": b"", "headers": []}
        await asyncio.wait_for(proxy(scope, receive, send), 5)
        return sent

    recording, upstream = Recording(), Slow()
    sent = asyncio.run(talk(recording, upstream))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert upstream.closed
    assert plans(recording)["p"].segments == (SegmentPlan(90, 1, 0.0, None),)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": "mooncake"}, "--format mooncake holds no tool times; choose one of: tracelab, dynamo"),
        ({"upstream": "127.0.0.1:30000"}, "is no address of a server; type one such as http://127.0.0.1:30000"),
        ({"upstream": "http://host:port"}, "is no address of a server"),
        ({"port": 70_000}, "port 70000 cannot be listened on .*; give another with --port"),
        ({"out": "old.csv"}, r"old\.csv is there already; give another file with --out"),
        ({"out": "no/new.csv"}, r"no is no folder; make it"),
    ],
)
def test_a_bad_argument_is_refused_before_anything_is_recorded(changed, said, tmp_path):
    (tmp_path / "old.csv").touch()
    arguments = {"upstream": "http://127.0.0.1:1", "port": 0, "out": "new.csv", "format": "tracelab"} | changed
    with pytest.raises(ConfigError, match=said):
        record.run(**(arguments | {"out": tmp_path / arguments["out"]}))


def test_what_was_recorded_is_saved_while_it_goes_on(tmp_path):
    recording, out = Recording(), Path(tmp_path / "fleet.csv")
    assert record._save(recording, out, "tracelab").plans == [] and not out.exists()
    call(recording, 0, 1)
    record._save(recording, out, "tracelab")
    call(recording, 2, 3, "q")
    record._save(recording, out, "tracelab")
    assert [plan.id for plan in traces.read(out)] == ["p", "q"]
