import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.entrypoints.http_server import ORJSONRequest
from sglang.srt.managers.io_struct import GenerateReqInput
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from astraea_sglang.errors import HintError
from astraea_sglang.hints import Hints
from astraea_sglang.patches.taken import SCOPE, Headers, headers, told, watched

MANAGER = SimpleNamespace(server_args=SimpleNamespace(schedule_policy="astraea"))


def said(taken: dict[str, Any]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in headers(taken)}


def watch(outputs: list[Any], sent=(), manager: Any = MANAGER, **fields) -> tuple[list[Any], dict[str, Any]]:
    async def original(manager, obj, request=None):
        for output in outputs:
            yield output

    async def collect() -> list[Any]:
        return [output async for output in watched(original, manager, obj, request)]

    obj = GenerateReqInput(**{"text": "hello", "sampling_params": {}} | fields)
    scope = {"type": "http", "headers": [(k.encode(), v.encode()) for k, v in dict(sent).items()]}
    request = ORJSONRequest(scope)
    return asyncio.run(collect()), scope


def test_what_was_taken_is_told_in_the_first_chunk_and_in_the_headers():
    chunks, scope = watch([{"meta_info": {}}, {"meta_info": {}}], {"x-session-id": "run 1"})
    assert chunks[0]["meta_info"]["astraea_program"] == {"program_id": "run 1", "identity": "header x-session-id"}
    assert chunks[1]["meta_info"] == {}
    assert said(scope[SCOPE]) == {"x-astraea-program": "run%201", "x-astraea-identity": "header x-session-id"}


def test_hints_are_told_as_accepted_clipped_or_ignored():
    hints = Hints("p", osl=5.0, next_tool="search", identity="hints", ignored=("mood",), clipped=("osl",))
    assert said(told(hints))["x-astraea-hints"] == "accepted=next_tool,osl; clipped=osl; ignored=mood"


def test_a_program_that_the_scheduler_recognised_is_told_too():
    found = {"astraea_program": [{"program_id": "r1", "identity": "prompt"}]}
    chunks, scope = watch([{"meta_info": found}])
    assert chunks[0]["meta_info"]["astraea_program"] == {"program_id": "r1", "identity": "prompt"}
    assert said(scope[SCOPE])["x-astraea-identity"] == "prompt"


def test_orders_for_kv_are_told_in_a_header_whatever_the_route():
    outcome = {"id": "pin-1", "kind": "kv.pin", "status": "clipped"}
    _, scope = watch([{"meta_info": {"astraea": [outcome]}}], {"x-session-id": "p"})
    assert said(scope[SCOPE])["x-astraea-kv"] == "pin-1=clipped"


def test_the_items_of_a_batch_are_told_in_their_own_meta_info():
    sampling = [{"custom_params": {"astraea": {"program_id": name}}} for name in "pq"]
    chunks, scope = watch([[{"meta_info": {}}, {"meta_info": {}}]], text=["a", "b"], sampling_params=sampling)
    assert [each["meta_info"]["astraea_program"]["program_id"] for each in chunks[0]] == ["p", "q"]
    assert said(scope[SCOPE]) == {}


def test_with_another_policy_nothing_is_told():
    manager = SimpleNamespace(server_args=SimpleNamespace(schedule_policy="fcfs"))
    chunks, scope = watch([{"meta_info": {}}], {"x-session-id": "p"}, manager)
    assert chunks == [{"meta_info": {}}] and SCOPE not in scope


def test_a_malformed_request_is_refused_before_anything_runs():
    with pytest.raises(HintError):
        watch([], {"x-dynamo-session-id": "x" * 300})


def test_a_client_that_leaves_ends_the_generation():
    ended = []

    async def original(manager, obj, request=None):
        try:
            while True:
                yield {"meta_info": {}}
        finally:
            ended.append(True)

    async def leave() -> None:
        outputs = watched(original, MANAGER, GenerateReqInput(text="hello", sampling_params={}))
        await outputs.__anext__()
        await outputs.aclose()

    asyncio.run(leave())
    assert ended


def test_the_middleware_adds_headers_where_a_request_was_taken_only():
    async def route(request: Request) -> PlainTextResponse:
        if request.url.path == "/a":
            request.scope[SCOPE] = {"program_id": "p\r\nx: 1", "identity": "body session_id"}
        return PlainTextResponse("ok")

    async def ask(path: str) -> httpx.Response:
        app = Headers(Starlette(routes=[Route("/a", route), Route("/b", route)]))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get(path)

    taken, plain = (asyncio.run(ask(path)) for path in ("/a", "/b"))
    assert taken.headers["x-astraea-program"] == "p%0D%0Ax%3A%201" and "x" not in taken.headers
    assert not any(name.startswith("x-astraea") for name in plain.headers)


@given(st.text(), st.text(), st.lists(st.text(), max_size=20))
def test_whatever_a_client_sent_a_header_is_one_short_line_of_ascii(program, identity, ignored):
    for _, value in headers({"program_id": program, "identity": identity, "ignored": ignored}):
        assert len(value) <= 1024 and value.decode("ascii").isprintable()


@pytest.mark.parametrize("prompts", [1, 2])
def test_the_samples_of_a_prompt_are_told_its_program(prompts):
    sampling = [{"n": 2, "custom_params": {"astraea": {"program_id": name}}} for name in "pq"[:prompts]]
    outputs = [[{"index": i, "meta_info": {}} for i in range(2 * prompts)]]
    chunks, scope = watch(outputs, text=["a", "b"][:prompts], sampling_params=sampling)
    told = [each["meta_info"]["astraea_program"]["program_id"] for each in chunks[0]]
    assert told == ["p", "p", "q", "q"][: 2 * prompts] and not scope[SCOPE]


def test_a_header_never_begins_or_ends_with_a_blank_nor_breaks_an_escape():
    taken = {"program_id": "\u00e9" * 256, "ignored": ["mood "], "kv": [{"id": " pin", "status": "accepted"}]}
    lines = said(taken)
    assert lines["x-astraea-program"] == "%C3%A9" * 256
    assert (lines["x-astraea-hints"], lines["x-astraea-kv"]) == ("ignored=mood", "pin=accepted")
    assert said({"identity": "\ud800"})["x-astraea-identity"] == "?"
