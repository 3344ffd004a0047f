"""Programs against a stand-in for a model server: it replies what the test scripts, and records what it was asked."""

import asyncio
import json
import resource
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from astraea_sglang import frontend as astraea
from astraea_sglang.errors import AstraeaError, ConfigError, HintError, ServerError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


Said = str | list[tuple[str, str]]  # what the model replies: text, or calls as (tool, arguments)


class StandIn:
    """A stand-in for a model server. Replies `script` in order, then "ok"; `refuse` is an error it answers instead."""

    def __init__(self, *script: Said, events: int = 200, refuse: tuple[int, Any] | None = None, crowd: int = 1) -> None:
        self.script = iter(script)
        self.refuse, self.event_status = refuse, events
        self.crowd, self.all_here = crowd, asyncio.Event()  # none is answered before so many have asked
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.events: list[dict[str, Any]] = []
        self.asking = asyncio.Event()
        self.hold = asyncio.Event()  # without it no reply comes, and of a stream not the last word
        self.hold.set()
        self.hung_up = asyncio.Event()
        self.cut_short = False  # a streamed reply ends before it says why
        self.url = ""
        routes = {"/v1/chat/completions": self.chat, "/astraea/events": self.event}
        self.app = Starlette(routes=[Route(path, serve, methods=["POST"]) for path, serve in routes.items()])

    async def event(self, request: Request) -> Response:
        self.events.append(await request.json())
        return Response(status_code=self.event_status)

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        if len(self.asked) >= self.crowd:
            self.all_here.set()
        await self.all_here.wait()
        if self.refuse:
            status, words = self.refuse
            return JSONResponse(words, status)
        self.asking.set()
        said = next(self.script, "ok")
        if not body.get("stream"):
            await self.hold.wait()
        return StreamingResponse(self.pieces(said)) if body.get("stream") else JSONResponse(whole(said))

    async def pieces(self, said: Said) -> AsyncIterator[str]:
        deltas = list(in_pieces(said))
        try:
            for delta in deltas[:-1]:
                yield chunk(delta)
            await self.hold.wait()
            yield chunk(deltas[-1])
        except asyncio.CancelledError:
            self.hung_up.set()
            raise
        if not self.cut_short:
            yield chunk({}, "stop" if isinstance(said, str) else "tool_calls")
            yield f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\n: a comment\n\ndata: [DONE]\n\n"

    def told(self, kind: str = "") -> list[tuple[str, ...]]:
        """What was it told of programs? As (event, tool)."""
        return [(e["event"], e["tool"]) if "tool" in e else (e["event"],) for e in self.events if kind in e["event"]]


USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 5}}


def call(place: int, tool: str, arguments: str) -> dict[str, Any]:
    return {"index": place, "id": f"c{place}", "function": {"name": tool, "arguments": arguments}}


def whole(said: Said) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said if isinstance(said, str) else None}
    if not isinstance(said, str):
        message["tool_calls"] = [call(place, *each) for place, each in enumerate(said)]
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": USAGE}


def in_pieces(said: Said) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    if isinstance(said, str):
        yield from ({"content": word} for word in said.split("|"))
        return
    for place, (tool, arguments) in enumerate(said):
        yield {"tool_calls": [call(place, tool, "")]}
        for letter in arguments:
            yield {"tool_calls": [{"index": place, "function": {"arguments": letter}}]}


def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n"


@asynccontextmanager
async def serving(server: StandIn) -> AsyncIterator[StandIn]:
    """The stand-in at an address of its own, in this event loop."""
    http = uvicorn.Server(uvicorn.Config(server.app, port=0, log_level="error", lifespan="off"))
    running = asyncio.create_task(http.serve())
    while not http.started:
        await asyncio.sleep(0.001)
    server.url = f"http://127.0.0.1:{http.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        http.should_exit = http.force_exit = True
        await running


@asynccontextmanager
async def opened(server: StandIn, *tools: Callable[..., Any], **how: Any) -> AsyncIterator[astraea.Program]:
    """A program "agent" on a server that is up while it runs."""
    async with serving(server), astraea.program("agent", tools, base_url=server.url, **how) as program:
        yield program


async def search(query: str) -> str:
    """Find pages."""
    return f"found {query}"


def read(path: str) -> str:
    raise FileNotFoundError(path)


SEARCH: tuple[str, str] = ("search", '{"query": "x"}')


async def test_a_chat_adds_both_sides_to_the_messages():
    async with opened(StandIn("hello"), system="Be brief.") as p:
        reply = await p.chat("hi", temperature=0)
        assert (reply.text, reply.calls, reply.usage, reply.finish) == ("hello", (), astraea.Usage(7, 2, 5), "stop")
        assert [m["content"] for m in p.messages] == ["Be brief.", "hi", "hello"] and p.last == reply


async def test_a_request_says_whose_it_is_in_the_fields_own_conventions():
    slow = astraea.tool(name="search", expects=0.5)(search)
    async with opened(server := StandIn(), slow, id="run-42", osl=64, priority=5, api_key="k", model="m") as p:
        await p.chat("hi")
        await p.chat("again", max_tokens=3)
        body, headers = server.asked[1], server.headers[1]
    assert (body["model"], body["session_id"], body["max_tokens"]) == ("m", "run-42", 3)
    assert body["nvext"] == {"agent_hints": {"osl": 64, "priority": 5}}
    assert body["agent_hints"] == {"agent_id": "agent", "step_id": "1", "expected_tool_duration_ms": 500}
    assert body["tools"][0]["function"]["name"] == "search"
    assert (headers["x-dynamo-session-id"], headers["authorization"]) == ("run-42", "Bearer k")
    assert "x-dynamo-parent-session-id" not in headers


@pytest.mark.parametrize(
    "choice, expected",
    [("auto", None), ("none", None), ({"type": "function", "function": {"name": "slow"}}, 2000)],
)
async def test_a_tools_duration_is_announced_only_where_it_is_clear_which_comes(choice, expected):
    tools = [astraea.tool(name="quick", expects=0.1)(search), astraea.tool(name="slow", expects=2)(search)]
    async with opened(server := StandIn(), *tools) as p:
        await p.chat("hi", tool_choice=choice)
    assert server.asked[0]["agent_hints"].get("expected_tool_duration_ms") == expected


async def test_a_call_runs_the_tool_and_its_result_is_what_the_model_reads_next():
    async with opened(server := StandIn([SEARCH], "done"), search) as p:
        reply = await p.chat("find x")
        result = await p.call(reply.calls[0])
        assert (result.text, result.value, result.error) == ("found x", "found x", None)
        assert (await p.chat()).text == "done"
    assistant, answer = server.asked[1]["messages"][1:]
    assert assistant["tool_calls"][0]["function"] == {"name": "search", "arguments": '{"query": "x"}'}
    assert answer == {"role": "tool", "tool_call_id": "c0", "content": "found x"}


async def test_a_function_that_no_model_asked_for_runs_without_a_message():
    async with opened(server := StandIn()) as p:
        await p.chat("hi")
        assert (await p.call(search, query="y")).value == "found y"
        assert len(p.messages) == 2
    assert server.told("tool") == [("tool_started", "search"), ("tool_finished", "search")]


@pytest.mark.parametrize(
    "asked, text",
    [
        (("read", '{"path": "a"}'), "Error: FileNotFoundError: a"),
        (("search", '{"q": 1}'), "Error: invalid arguments: query: Missing required argument"),
        (("search", '"x"'), "Error: invalid arguments: Arguments must be"),
        (("search", '{"query'), "Error: invalid arguments: Invalid JSON"),
        (("fly", "{}"), "Error: there is no tool 'fly'; there are: search, read"),
    ],
)
async def test_what_goes_wrong_with_a_call_is_for_the_model_to_read(asked, text):
    async with opened(server := StandIn([asked], "sorry"), search, read) as p:
        reply = await p.chat("go")
        result = await p.call(reply.calls[0])
        await p.chat()
    assert result.error and result.text.startswith(text)
    assistant, answer = server.asked[1]["messages"][1:]
    assert answer["content"] == result.text
    arguments = assistant["tool_calls"][0]["function"]["arguments"]  # SGLang answers 400 unless it is an object
    assert isinstance(json.loads(arguments), dict) and (asked[1] in arguments or json.loads(arguments)["malformed"])


async def test_the_loop_runs_all_calls_of_a_reply_at_once_until_there_is_none():
    met = asyncio.Barrier(2)  # each waits for the other

    async def meet(name: str) -> str:
        await met.wait()
        if name == "first":
            await asyncio.sleep(0.01)
        return name

    script: list[Said] = [[("meet", '{"name": "first"}'), ("meet", '{"name": "second"}')], [("meet", "{}")], "answer"]
    async with opened(server := StandIn(*script), meet) as p:
        assert (await p.run("go")).text == "answer"
    assert [m["content"] for m in server.asked[1]["messages"][2:]] == ["first", "second"]  # in the order of the calls
    assert [e["id"] for e in server.events[:4]] == ["c0", "c1", "c1", "c0"]


async def test_the_loop_ends_after_so_many_turns():
    async with opened(server := StandIn(*[[SEARCH]] * 9), search) as p:
        assert len((await p.run("go", most_turns=3)).calls) == 1
        with pytest.raises(ConfigError, match="give 1 or more"):
            await p.run("go", most_turns=0)
    assert len(server.asked) == 3 and len(server.told("tool_finished")) == 2


async def test_a_stream_gives_text_as_it_comes_and_then_the_reply():
    async with opened(server := StandIn("one |two\u2028|\x85three")) as p:
        server.hold.clear()
        pieces = []
        async for piece in p.stream("count"):
            pieces.append(piece)
            if len(pieces) == 2:
                server.hold.set()
        assert pieces == ["one ", "two\u2028", "\x85three"]
        assert p.last == astraea.Reply("".join(pieces), (), astraea.Usage(7, 2, 5), "stop")
        assert p.messages[-1] == {"role": "assistant", "content": "".join(pieces)}


async def test_the_calls_of_a_stream_are_put_together_from_their_pieces():
    async with opened(StandIn([SEARCH, ("read", '{"path": "é"}')]), search, read) as p:
        assert [piece async for piece in p.stream("go")] == []
        assert p.last and p.last.finish == "tool_calls"
        assert p.last.calls == (astraea.Call("c0", *SEARCH), astraea.Call("c1", "read", '{"path": "é"}'))


async def test_a_cancelled_stream_hangs_up_and_leaves_the_messages_as_they_were():
    async with opened(server := StandIn("one |two")) as p:
        server.hold.clear()
        started = asyncio.Event()

        async def listen() -> None:
            async for _ in p.stream("count"):
                started.set()

        listening = asyncio.create_task(listen())
        await started.wait()
        listening.cancel()
        await asyncio.wait_for(server.hung_up.wait(), 5)
        assert listening.cancelled() or listening.cancelling()
        assert p.messages == [] and p.last is None
        server.hold.set()
        assert (await p.chat("count")).text == "ok"


async def test_a_stream_that_nobody_reads_on_hangs_up():
    async with opened(server := StandIn("one |two")) as p:
        server.hold.clear()
        async with aclosing(p.stream("count")) as pieces:
            assert await anext(pieces) == "one "
        await asyncio.wait_for(server.hung_up.wait(), 5)


async def test_a_cancelled_tool_is_over_for_the_server_too():
    started = asyncio.Event()

    async def wait() -> None:
        started.set()
        await asyncio.sleep(60)

    async with opened(server := StandIn([("wait", "")]), wait) as p:
        running = asyncio.create_task(p.run("go"))
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert server.told() == [("tool_started", "wait"), ("tool_finished", "wait"), ("program_end",)]


async def test_a_run_cancelled_among_its_tools_leaves_no_call_without_a_result():
    waiting = asyncio.Event()

    async def wait() -> None:
        waiting.set()
        await asyncio.sleep(60)

    async with opened(server := StandIn([("wait", ""), SEARCH, ("wait", "")], "back"), wait, search) as p:
        running = asyncio.create_task(p.run("go"))
        await waiting.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await p.chat("go on")).text == "back"
    answers = [(m["tool_call_id"], m["content"]) for m in server.asked[1]["messages"] if m["role"] == "tool"]
    assert answers == [("c0", "Error: was cancelled"), ("c1", "found x"), ("c2", "Error: was cancelled")]


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, KeyboardInterrupt])
async def test_the_end_is_told_once_even_when_the_body_raises(error):
    async with serving(server := StandIn()):
        p = astraea.program("agent", base_url=server.url)
        with pytest.raises(error):
            async with p:
                await p.chat("hi")
                raise error
    assert server.events == [{"event": "program_end", "program_id": p.id}]


async def test_the_end_is_told_when_the_body_is_cancelled_within_a_request():
    async with serving(server := StandIn("one |two")):
        server.hold.clear()

        async def body() -> None:
            async with astraea.program("agent", base_url=server.url) as p:
                await p.chat("hi")

        running = asyncio.create_task(body())
        await server.asking.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert server.told() == [("program_end",)]


async def test_a_program_that_asked_nothing_has_nothing_to_end():
    async with opened(server := StandIn()) as p:
        await p.call(search, "x")
    assert server.events == []


async def test_a_server_without_events_is_told_once_and_never_again():
    server = StandIn(*[[SEARCH], "done"] * 2, events=404)
    async with httpx.AsyncClient() as client, serving(server):
        for _ in range(2):
            async with astraea.program("agent", [search], base_url=f"{server.url}/v1/", client=client) as p:
                assert (await p.run("go")).text == "done"
    assert server.told() == [("tool_started", "search")]


@pytest.mark.parametrize("status", [400, 500])
async def test_an_event_that_is_refused_harms_nothing(status):
    async with opened(server := StandIn([SEARCH], "done", events=status), search) as p:
        assert (await p.run("go")).text == "done"
    assert len(server.told("tool")) == 2


async def test_an_event_says_how_long_the_tool_will_take():
    async with opened(server := StandIn([SEARCH]), astraea.tool(expects=0.5)(search)) as p:
        await p.run("go")
    started = {"tool": "search", "id": "c0", "expected_tool_duration_ms": 500}
    assert server.events[0] == {"event": "tool_started", "program_id": p.id, **started}


async def test_a_sub_agent_is_a_program_of_its_own_under_its_parent():
    async with opened(server := StandIn(), temperature=0, priority=3) as p:
        await p.chat("hi")
        async with p.child("reviewer", [search], system="Review.") as c:
            await c.chat("look")
        assert (c.id != p.id, c.parent_id, c.name) == (True, p.id, "reviewer") and len(p.messages) == 2
    assert server.headers[1]["x-dynamo-parent-session-id"] == p.id
    body = server.asked[1]
    assert (body["session_id"], body["agent_hints"]["agent_id"], body["temperature"]) == (c.id, "reviewer", 0)
    assert body["nvext"]["agent_hints"]["priority"] == 3
    assert [e["program_id"] for e in server.events] == [c.id, p.id]


async def test_a_program_that_a_tool_opens_is_a_sub_agent():
    async def delegate() -> str:
        async with astraea.program("helper", base_url=server.url) as helper:
            return str(helper.parent_id)

    async with opened(server := StandIn([("delegate", "")]), delegate) as p:
        await p.run("go")
        assert p.messages[2]["content"] == p.id
    assert astraea.program("later").parent_id is None


@pytest.mark.parametrize(
    "refused, words",
    [
        ((400, {"object": "error", "message": "too many tokens"}), "answered 400: too many tokens"),
        ((404, {"error": {"message": "no model m"}}), "answered 404: no model m"),
        ((422, {"detail": "messages missing"}), "answered 422: messages missing"),
        ((503, "busy"), "answered 503: busy"),
        ((200, {"choices": [{"message": 7}]}), "no chat completion, for choices.0.message"),
        ((200, {"error": {"message": "out of memory"}}), "out of memory"),
    ],
)
async def test_a_server_that_refuses_is_quoted(refused, words):
    async with opened(StandIn(refuse=refused)) as p:
        with pytest.raises(ServerError, match=words):
            await p.chat("hi")
        assert p.messages == []


async def test_a_stream_that_ends_too_soon_is_an_error():
    async with opened(server := StandIn("one |two")) as p:
        server.cut_short = True
        with pytest.raises(ServerError, match="ended a reply before it was finished"):
            _ = [piece async for piece in p.stream("hi")]
        assert p.messages == []


async def test_a_server_that_is_silent_too_long_is_an_error():
    async with opened(server := StandIn("one |two"), timeout=0.05) as p:
        server.hold.clear()
        with pytest.raises(ServerError, match=r"silent for 0.05 s; give it more: program\(..., timeout=...\)"):
            _ = [piece async for piece in p.stream("hi")]


async def test_where_no_server_is_the_error_says_how_to_start_one():
    async with httpx.AsyncClient() as client, astraea.program("a", base_url="http://127.0.0.1:9", client=client) as p:
        with pytest.raises(ServerError, match=r"no server answers at http://127.0.0.1:9 .*; start one: astraea serve"):
            await p.chat("hi")


async def test_a_program_is_asked_only_while_it_is_open():
    p = astraea.program("agent")
    with pytest.raises(AstraeaError, match="is not open; ask within: async with"):
        await p.chat("hi")
    async with p:
        pass
    with pytest.raises(AstraeaError, match="is over"):
        await p.chat("hi")
    with pytest.raises(AstraeaError, match="make a new one"):
        await p.__aenter__()


@pytest.mark.parametrize(
    "how, error, words",
    [
        ({"id": "a\r\nX-Evil: 1"}, HintError, "id holds unprintable characters"),
        ({"id": "é"}, ConfigError, "goes into an HTTP header"),
        ({"parent_id": "x" * 300}, HintError, "parent_id is 300 characters long"),
        ({"base_url": "localhost:1"}, ConfigError, "base_url='localhost:1' is no address"),
        ({"tools": [search, astraea.tool(name="search")(read)]}, ConfigError, "two tools of one name"),
    ],
)
def test_what_no_server_could_take_is_refused_at_once(how, error, words):
    with pytest.raises(error, match=words):
        astraea.program("agent", **how)


async def test_a_thousand_programs_wait_at_once_without_a_thread_each():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000) if hard > 0 else 20_000, hard))
    before = threading.active_count()

    def work() -> int:
        return threading.active_count()

    async def one() -> int:
        async with astraea.program("agent", [work], base_url=server.url) as p:
            assert (await p.chat("go")).text == "ok"  # no earlier than all thousand have asked
            return (await p.call(work)).value

    try:
        async with serving(server := StandIn(events=404, crowd=1000)):
            threads = await asyncio.gather(*(one() for _ in range(1000)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len({body["session_id"] for body in server.asked}) == 1000
    assert max(threads) <= before + 40  # for plain functions, of which anyio's limiter lets so many run


BARE = """
import sys

class Blocked:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in {"torch", "sglang", "transformers", "numpy"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import astraea_sglang.frontend as astraea
assert not {"httpx", "pydantic"} & set(sys.modules), "imported before it was used"
from astraea_sglang.frontend.run import ProgramRun  # a module of the name of a function

@astraea.tool(expects=0.5)
def search(query: str) -> str: ...

astraea.program("agent", tools=[search])
assert set(astraea.__all__) <= {*dir(astraea)} | {n for n in astraea.__all__ if hasattr(astraea, n)}
"""


def test_it_needs_neither_torch_nor_sglang():
    done = subprocess.run([sys.executable, "-c", BARE], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
