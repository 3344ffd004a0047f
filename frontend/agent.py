"""One run of an agent: whose requests are these, what was said in them, and what runs between them?

    async with astraea.program("researcher", tools=[search]) as p:
        answer = await p.run("Who wrote it?")

Speaks plain HTTP to any OpenAI-compatible server. One with astraea schedules the program as a whole.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Self, overload

import httpx

from astraea_sglang.errors import AstraeaError, ConfigError
from astraea_sglang.frontend.reply import Call, Reply
from astraea_sglang.frontend.tools import Result, Tool, failed, tool
from astraea_sglang.frontend.wire import EVENT_S, Server
from astraea_sglang.hints import NAME_LENGTH, identity

Content = str | list[dict[str, Any]]  # of a message: text, or OpenAI's parts
SILENCE_S = 600.0

_current: ContextVar["Program | None"] = ContextVar("astraea_agent", default=None)
_telling: set[asyncio.Task[None]] = set()  # the loop itself would forget them


def program(
    name: str,
    tools: Iterable[Callable[..., Any]] = (),
    *,
    base_url: str | None = None,
    model: str = "default",
    system: str | None = None,
    osl: int | None = None,
    priority: int | None = None,
    id: str | None = None,
    parent_id: str | None = None,
    api_key: str | None = None,
    client: httpx.AsyncClient | None = None,
    timeout: float | None = SILENCE_S,
    **options: Any,
) -> "Program":
    """Which program do the requests within `async with` belong to? A new one; the server is told when it ends.

    `name` is its class: programs of one name behave alike. `osl` is how long its replies are expected to be, in tokens;
    of two programs the one of higher `priority` goes first. `timeout` is how long the server may be silent, in seconds.
    `options` go into the body of every request, such as temperature=0. Opened by a tool, it is a child of the program
    that called the tool. Raises ConfigError or HintError, a ValueError, for what no server could take.
    """
    caller = _current.get()
    parent_id = parent_id or (caller.id if caller else None)
    server = Server(base_url, api_key, client, timeout)
    return Program(server, name, tools, model, system, osl, priority, id, parent_id, options)


class Program:
    """What has been said so far (`messages`, OpenAI's), and what was said last? Made by `program` and `child`.

    A request that fails or is cancelled leaves `messages` as they were.
    """

    def __init__(
        self,
        server: Server,
        name: str,
        tools: Iterable[Callable[..., Any]],
        model: str,
        system: str | None,
        osl: int | None,
        priority: int | None,
        id: str | None,
        parent_id: str | None,
        options: Mapping[str, Any],
    ) -> None:
        self.name = name[:NAME_LENGTH]
        self.id = _header(id or uuid.uuid4().hex, "id")
        self.parent_id = _header(parent_id, "parent_id") if parent_id else None
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self.last: Reply | None = None
        offered = [tool(fn) for fn in tools]
        self.tools = {each.name: each for each in offered}
        if len(self.tools) < len(offered):
            names = ", ".join(each.name for each in offered)
            raise ConfigError(f"program {name!r} has two tools of one name ({names}); give one another: tool(name=...)")
        self._server, self._model, self._options = server, model, options
        self._advice = {key: value for key, value in (("osl", osl), ("priority", priority)) if value is not None}
        self._opened = self._closed = False
        self._requests = self._own_calls = 0
        self._told: asyncio.Task[None] | None = None  # the event told last: the next one waits for it

    async def __aenter__(self) -> Self:
        if self._opened:
            raise AstraeaError(f"program {self.name!r} was opened before; make a new one: astraea.program(...)")
        self._opened = True
        await self._server.open()
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._tell("program_end")
        self._closed = True
        self._server.close()
        if self._told:
            await asyncio.wait([self._told], timeout=EVENT_S)  # it goes on when this is cancelled

    def child(
        self,
        name: str,
        tools: Iterable[Callable[..., Any]] = (),
        *,
        model: str | None = None,
        system: str | None = None,
        osl: int | None = None,
        priority: int | None = None,
        id: str | None = None,
        **options: Any,
    ) -> "Program":
        """Which program is a sub-agent? One of its own, with this one as its parent, on the same server."""
        priority = self._advice.get("priority") if priority is None else priority
        options = {**self._options, **options}
        server = self._server.another()
        return Program(server, name, tools, model or self._model, system, osl, priority, id, self.id, options)

    async def chat(self, content: Content | None = None, **options: Any) -> Reply:
        """What does the model say to this, or to the results of its tool calls? Appends both to `messages`.

        `options` go into the request's body, such as max_tokens=64. Raises ServerError.
        """
        asked, body = self._request(content, options)
        return self._take(asked, await self._server.chat(body, self._headers()))

    async def stream(self, content: Content | None = None, **options: Any) -> AsyncGenerator[str]:
        """What does the model say, as it comes? Like `chat`; then `last` is the whole reply, with its calls."""
        asked, body = self._request(content, options)
        async with aclosing(self._server.stream(body, self._headers())) as pieces:
            async for piece in pieces:
                if isinstance(piece, Reply):
                    self._take(asked, piece)
                else:
                    yield piece

    @overload
    async def call(self, what: Call, /) -> Result: ...
    @overload
    async def call(self, what: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Result: ...
    async def call(self, what: Call | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Result:
        """What comes of this tool call? One by the model, whose result is appended to `messages`, or a function's.

        What went wrong is the result's `error`, for the model to read. ConfigError: the function can be no tool.
        """
        asked = isinstance(what, Call)
        chosen = self.tools.get(what.tool) if asked else tool(what)
        if asked and chosen is None:
            known = ", ".join(self.tools) or "none"
            result = failed(what.tool, f"there is no tool {what.tool!r}; there are: {known}")
        else:
            assert chosen is not None
            self._own_calls += not asked
            event: dict[str, Any] = {"tool": chosen.name, "id": what.id if asked else f"own-{self._own_calls}"}
            expected = {} if chosen.expects is None else {"expected_tool_duration_ms": chosen.expects * 1000}
            self._tell("tool_started", **event, **expected)
            caller = _current.set(self)
            try:
                result = await (chosen.answer(what.arguments) if asked else chosen.run(*args, **kwargs))
            finally:
                _current.reset(caller)
                self._tell("tool_finished", **event)
        if asked:
            self._append(what, result)
        return result

    async def run(self, content: Content | None = None, *, most_turns: int = 8, **options: Any) -> Reply:
        """What does the model answer in the end? Runs the tools it calls, all of a reply at once, until it calls none.

        After `most_turns` replies it returns the last one, its calls not run. When it is cancelled while tools run,
        `messages` says so in place of their results. Raises ServerError.
        """
        if most_turns < 1:
            raise ConfigError(f"most_turns={most_turns} leaves the model no reply; give 1 or more")
        reply = await self.chat(content, **options)
        for _ in range(most_turns - 1):
            if not reply.calls:
                break
            before = len(self.messages)
            try:
                async with asyncio.TaskGroup() as together:
                    for call in reply.calls:
                        together.create_task(self.call(call))
            finally:  # a server may refuse a call without a result
                answered = {message.get("tool_call_id") for message in self.messages[before:]}
                for call in reply.calls:
                    if call.id not in answered:
                        self._append(call, failed(call.tool, "was cancelled"))
            reply = await self.chat(**options)
        return reply

    def _headers(self) -> dict[str, str]:
        parent = {"X-Dynamo-Parent-Session-ID": self.parent_id} if self.parent_id else {}
        return {"X-Dynamo-Session-ID": self.id, **parent}

    def _request(
        self, content: Content | None, options: Mapping[str, Any]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What is asked, and the body that asks it."""
        if not self._opened or self._closed:
            state = "over" if self._closed else "not open"
            raise AstraeaError(f"program {self.name!r} is {state}; ask within: async with astraea.program(...) as p")
        asked = [] if content is None else [{"role": "user", "content": content}]
        options = {**self._options, **options}
        hints: dict[str, Any] = {"agent_id": self.name, "step_id": str(self._requests)}
        expected = {each.expects for each in self._callable(options.get("tool_choice"))}
        if len(expected) == 1 and (seconds := expected.pop()) is not None:  # so long whichever is called
            hints["expected_tool_duration_ms"] = seconds * 1000
        body = {
            "model": self._model,
            "messages": self.messages + asked,
            "session_id": self.id,
            "agent_hints": hints,
        }
        if self._advice:
            body["nvext"] = {"agent_hints": self._advice}
        if self.tools:
            body["tools"] = [each.schema for each in self.tools.values()]
        self._requests += 1
        return asked, body | options

    def _callable(self, choice: Any) -> Iterable[Tool]:
        """Which tools may the model call, under this `tool_choice`?"""
        if isinstance(choice, Mapping):
            forced = self.tools.get(choice.get("function", {}).get("name"))
            return [forced] if forced else []
        return [] if choice == "none" else self.tools.values()

    def _take(self, asked: list[dict[str, Any]], reply: Reply) -> Reply:
        self.messages += [*asked, reply.message()]
        self.last = reply
        return reply

    def _append(self, call: Call, result: Result) -> None:
        """The results of one reply in the order of its calls, whichever came first: the same prompt every time."""
        order = {each.id: place for place, each in enumerate(self.last.calls)} if self.last else {}
        at = len(self.messages)
        while at and order.get(self.messages[at - 1].get("tool_call_id", ""), -1) > order.get(call.id, len(order)):
            at -= 1
        self.messages.insert(at, {"role": "tool", "tool_call_id": call.id, "content": result.text})

    def _tell(self, event: str, **about: Any) -> None:
        """Tell the server what happened, after what it was told before, while the program goes on."""
        if not self._requests or self._closed or not self._server.takes_events:
            return  # no server knows the program, or this one does not ask

        async def tell(before: asyncio.Task[None] | None) -> None:
            if before:
                await asyncio.wait([before])
            await self._server.tell({"event": event, "program_id": self.id, **about})

        self._told = asyncio.create_task(tell(self._told))
        _telling.add(self._told)
        self._told.add_done_callback(_telling.discard)


def _header(value: str, name: str) -> str:
    if not identity(value, name).isascii():
        raise ConfigError(f"{name}={value!r} goes into an HTTP header; give it printable ASCII, such as run-42")
    return value
