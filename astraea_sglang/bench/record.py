"""`astraea bench record`: a proxy in front of a server that writes down which agent programs came, as a trace.

Requests go on as they came (method, path, headers, body) but for `host` and what belongs to one connection; answers
come back byte for byte, as they arrive. WebSockets are not forwarded.
"""

import asyncio
import json
import signal
import socket
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
from rich.console import Console

from astraea_sglang.bench import traces
from astraea_sglang.bench.recording import ROUTES, Recorded, Recording, Tally, Usage, caller
from astraea_sglang.errors import ConfigError

FORMATS = ("tracelab", "dynamo")  # those that hold the time of tools
SAVE_EVERY_S = 10.0
OF_THE_CONNECTION = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"expect",
}  # fmt: skip

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


def run(upstream: str, port: int, out: Path, format: str) -> int:
    """Record what goes through 127.0.0.1:`port` to `upstream` until Ctrl-C or SIGTERM; `out` is saved every 10 s, too.

    Returns 0, or 1 when no program was recorded. Raises ConfigError when an argument is wrong or uvicorn is missing.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format {format} holds no tool times; choose one of: {', '.join(FORMATS)}")
    if out.exists():
        raise ConfigError(f"{out} is there already; give another file with --out, or move it away")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is no folder; make it, or give another file with --out")
    try:
        address = httpx.URL(upstream)
    except httpx.InvalidURL:
        address = httpx.URL()
    if address.scheme not in ("http", "https") or not address.host:
        raise ConfigError(f"--upstream {upstream} is no address of a server; type one such as http://127.0.0.1:30000")
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as problem:
        raise ConfigError(f"port {port} cannot be listened on ({problem}); give another with --port") from None
    console, recording = Console(stderr=True, highlight=False), Recording()
    console.print(f"astraea: recording http://127.0.0.1:{port} -> {address} into {out}; Ctrl-C ends it", soft_wrap=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with listening, suppress(KeyboardInterrupt):
            asyncio.run(_serve(Proxy(address, recording), listening, lambda: _save(recording, out, format)))
    finally:
        signal.signal(signal.SIGTERM, before)
        done = _save(recording, out, format)
    segments = sum(len(plan.segments) for plan in done.plans)
    where = f"are in {out}" if done.plans else "were seen: no file is written"
    console.print(f"astraea: {len(done.plans)} programs of {segments} generations {where}", soft_wrap=True)
    for note, count in sorted(done.notes.items()):
        console.print(f"astraea: {count} generations {note}", soft_wrap=True)
    return 0 if done.plans else 1


def _save(recording: Recording, out: Path, format: str) -> Recorded:
    done = recording.recorded(trees=format == "dynamo")
    if done.plans:
        traces.write(done.plans, out, format)
    return done


async def _serve(proxy: "Proxy", listening: socket.socket, save: Callable[[], Any]) -> None:
    try:
        import uvicorn
    except ImportError:
        raise ConfigError("uvicorn is not installed; type: pip install 'astraea-sglang[server]'") from None
    config = uvicorn.Config(
        proxy, lifespan="off", log_level="critical", server_header=False, date_header=False, ws="none",
        timeout_graceful_shutdown=3,
    )  # fmt: skip
    saving = asyncio.create_task(_every(SAVE_EVERY_S, save))
    try:
        await uvicorn.Server(config).serve(sockets=[listening])
    finally:
        saving.cancel()


async def _every(seconds: float, save: Callable[[], Any]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            save()
        except ConfigError as problem:  # perhaps there is room on the disk again in a while
            Console(stderr=True).print(f"astraea: {problem}", style="red", markup=False, soft_wrap=True)


class Proxy:
    """The ASGI application: every request goes to `upstream`, every generation into `recording`."""

    def __init__(
        self,
        upstream: httpx.URL,
        recording: Recording,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstream, self._recording, self._clock = upstream, recording, clock
        self._client = httpx.AsyncClient(
            transport=transport,
            timeout=httpx.Timeout(None, connect=10),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Forward one request; when its client goes away, the upstream's answer is broken off, too."""
        came = self._clock()
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        forward = asyncio.create_task(self._forward(scope, body, came, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((forward, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, forward):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await forward

    async def _forward(self, scope: Message, body: bytes, came: float, send: Send) -> None:
        number, usages, id, program = None, [], None, None
        if scope["method"] == "POST" and scope["path"].rstrip("/") in ROUTES:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            number = self._recording.begun(caller(headers, _parsed(body)), came)
        try:
            request = self._request(scope, body)
            try:
                answer = await self._client.send(request, stream=True)
            except httpx.RequestError as problem:
                await _refuse(send, f"{self._upstream} does not answer ({type(problem).__name__}: {problem})")
                return
            streamed = answer.headers.get("content-type", "").startswith("text/event-stream")
            tally = Tally(streamed, len(body))
            try:
                await send({"type": "http.response.start", "status": answer.status_code, "headers": _kept(answer)})
                async for data in self._pass(answer, send):
                    if number is not None:
                        tally.feed(data)
            finally:
                usages: list[Usage] = tally.usages() if answer.is_success else []
                id, program = tally.id, unquote(answer.headers.get("x-astraea-program", "")) or None
                await answer.aclose()
        finally:
            if number is not None:
                self._recording.ended(number, self._clock(), usages, id=id, program=program)

    def _request(self, scope: Message, body: bytes) -> httpx.Request:
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        path = self._upstream.raw_path.rstrip(b"/") + (scope.get("raw_path") or scope["path"].encode()) + query
        headers = _own(scope["headers"], {b"host"})
        return httpx.Request(scope["method"], self._upstream.copy_with(raw_path=path), headers=headers, content=body)

    async def _pass(self, answer: httpx.Response, send: Send) -> AsyncIterator[bytes]:
        """Send an answer on as it comes; yields it uncompressed."""
        packed = answer.headers.get("content-encoding") in ("gzip", "deflate")
        unpacked = zlib.decompressobj(wbits=47).decompress if packed else bytes
        async for data in answer.aiter_raw():
            await send({"type": "http.response.body", "body": data, "more_body": True})
            with suppress(zlib.error):
                yield unpacked(data)
        await send({"type": "http.response.body", "body": b""})


def _own(headers: Iterable[tuple[bytes, bytes]], more: Iterable[bytes] = ()) -> Headers:
    """Headers without those of one connection."""
    return [(name, value) for name, value in headers if name.lower() not in {*OF_THE_CONNECTION, *more}]


def _kept(answer: httpx.Response) -> Headers:
    return _own(answer.headers.raw)


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # the server says so
        return None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(send: Send, problem: str) -> None:
    text = f"astraea bench record: {problem}; start the server, or give its address with --upstream"
    body = json.dumps({"error": {"message": text, "type": "upstream_unreachable", "code": 502}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 502, "headers": headers})
    await send({"type": "http.response.body", "body": body})
