"""How does a program reach its model? HTTP to an OpenAI-compatible server; and what astraea is told, where it runs."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import httpx

from astraea_sglang.errors import ConfigError, ServerError
from astraea_sglang.frontend.reply import Draft, Reply, server_sent, words

logger = logging.getLogger(__name__)

DEFAULT_URL = "http://127.0.0.1:30000"
PROGRAMS_PER_LINE = 8
KEEP_ALIVE_S = 3.0  # less than the 5 s after which SGLang's server hangs up
CONNECT_S = 30.0
CONNECT_RETRIES = 2
EVENT_S = 5.0
NO_SUCH_ROUTE = (404, 405, 501)


class Server:
    """Who answers? One OpenAI-compatible server, through `client`, or else through one that its event loop shares.

    `timeout` is how long it may be silent, in seconds: None waits for ever. Raises ConfigError for a bad address.
    """

    def __init__(
        self, base_url: str | None, api_key: str | None, client: httpx.AsyncClient | None, timeout: float | None
    ) -> None:
        given = base_url or (str(client.base_url) if client else "") or DEFAULT_URL
        if not given.startswith(("http://", "https://")):
            raise ConfigError(f"base_url={given!r} is no address of a server; give one such as {DEFAULT_URL}")
        self.url = given.rstrip("/").removesuffix("/v1")
        self._events = f"{self.url}/astraea/events"
        self._given = client
        self._line: _Line | None = None
        self._key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = httpx.Timeout(timeout, connect=CONNECT_S, pool=None)

    @property
    def takes_events(self) -> bool:
        """Is it worth telling this server what happens? False once it has answered that it has no such route."""
        return self._events not in _deaf.get(asyncio.get_running_loop(), ())

    async def open(self) -> None:
        """Be ready for the requests of one program, from the running event loop."""
        self._line = _Line(self._given) if self._given else await _free_line()
        self._line.programs += 1
        self._client = self._line.client

    def close(self) -> None:
        """That program is over."""
        if self._line:
            self._line.programs -= 1

    def another(self) -> "Server":
        """The same for one more program."""
        return copy(self)

    async def chat(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Reply:
        """What does it answer? Raises ServerError when nobody does, or with the server's words when it refuses."""
        async with self._post(body, headers) as response:
            draft = Draft()
            draft.add(await response.aread())
        return draft.reply()

    async def stream(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> AsyncGenerator[str | Reply]:
        """What does it answer, as it comes? Pieces of text, then the whole reply. Closing it hangs up. See `chat`."""
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        draft = Draft()
        async with self._post(asked, headers) as response, aclosing(server_sent(response)) as events:
            async for data in events:
                if piece := draft.add(data):
                    yield piece
        if draft.finish is None:
            raise ServerError(f"{self.url} ended a reply before it was finished; its log tells why")
        yield draft.reply()

    async def tell(self, event: Mapping[str, Any]) -> None:
        """Tell it what has happened to a program. Advisory: waits 5 s at most, and never raises."""
        if not self.takes_events:
            return
        try:
            answer = await self._client.post(self._events, json=event, headers=self._key, timeout=EVENT_S)
        except Exception as error:
            logger.debug("%s was not told: %r", event, error)
            return
        if answer.status_code in NO_SUCH_ROUTE:
            _deaf.setdefault(asyncio.get_running_loop(), set()).add(self._events)
        elif not answer.is_success:
            logger.debug("%s was refused: %s", event, answer.text)

    @asynccontextmanager
    async def _post(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        url = f"{self.url}/v1/chat/completions"
        try:
            told = {**self._key, **headers}
            async with self._client.stream("POST", url, json=body, headers=told, timeout=self._timeout) as response:
                if not response.is_success:
                    raise ServerError(f"{url} answered {response.status_code}: {words(await response.aread())}")
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = str(error) or type(error).__name__
            raise ServerError(f"no server answers at {self.url} ({reason}); start one: astraea serve") from None
        except httpx.TimeoutException:
            wanted = f"was silent for {self._timeout.read:g} s; give it more: program(..., timeout=...)"
            raise ServerError(f"{self.url} {wanted}") from None
        except httpx.TransportError as error:
            raise ServerError(f"{self.url} went away during a reply ({error!r}); its log tells why") from None


@dataclass(slots=True)
class _Line:
    """A client, and how many programs use it now."""

    client: httpx.AsyncClient
    programs: int = 0


class _Lines:
    """The clients of one event loop: few programs each, as httpx's time for a request grows with all it holds."""

    def __init__(self) -> None:
        self.lines: list[_Line] = []
        self._context = httpx.create_ssl_context()

    def free(self) -> _Line:
        line = min(self.lines, key=lambda each: each.programs, default=None)
        if line is None or line.programs >= PROGRAMS_PER_LINE:
            limits = httpx.Limits(keepalive_expiry=KEEP_ALIVE_S)
            transport = httpx.AsyncHTTPTransport(self._context, limits=limits, retries=CONNECT_RETRIES)
            line = _Line(httpx.AsyncClient(transport=transport))
            self.lines.append(line)
        return line


_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[_Lines, AsyncGenerator[_Lines]]] = WeakKeyDictionary()
_deaf: WeakKeyDictionary[asyncio.AbstractEventLoop, set[str]] = WeakKeyDictionary()  # addresses that take no events


async def _free_line() -> _Line:
    loop = asyncio.get_running_loop()
    if loop not in _lines:
        held = _held(loop)
        _lines[loop] = await anext(held), held
    return _lines[loop][0].free()


async def _held(loop: asyncio.AbstractEventLoop) -> AsyncGenerator[_Lines]:
    """Clients for as long as their loop runs: asyncio.run closes what generators are left, and so the clients."""
    clients = _Lines()
    try:
        yield clients
    finally:
        del _lines[loop]
        for line in clients.lines:
            await line.client.aclose()
