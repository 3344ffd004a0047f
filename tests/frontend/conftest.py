import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest

from astraea_sglang.frontend import sgl


class StandIn:
    """A stand-in for SGLang's HTTP server: canned generations, and a record of what it was asked, in order of arrival.

    `generated` holds the bodies of /generate, `events` those of /astraea/events, which a plain server answers with 404.
    Every generation is "ok", and waits for `gate`. The longest choice is the most likely one.
    """

    def __init__(self, *, astraea: bool) -> None:
        self.astraea = astraea
        self.generated: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.gate = Event()
        self.gate.set()
        self.url = ""

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """What does SGLang answer, as status and JSON?"""
        if path == "/generate":
            self.generated.append(body)
            self.gate.wait(10)
            if isinstance(body["text"], list):
                return 200, [_measured(choice) for choice in body["text"]]
            return 200, {"text": "ok", "meta_info": {"prompt_tokens": 1}}
        if path == "/astraea/events":
            self.events.append(body)
            return (200, {}) if self.astraea else (404, {"detail": "Not Found"})
        return (200, {"model_path": "stand-in"}) if path == "/get_model_info" else (404, {})

    def run(self, body: Callable[..., None], backend: sgl.AstraeaEndpoint | None = None, **options: Any) -> Any:
        """The state that `body` leaves when it is run as a program, by an endpoint of its own unless one is given."""
        program: Any = sgl.function(body)
        return program.run(backend=backend or sgl.AstraeaEndpoint(self.url), **options)

    def hints(self) -> list[dict[str, Any]]:
        """What did each request say of its program?"""
        return [body["kv_hints"]["actions"][0]["payload"] for body in self.generated]

    def pauses(self) -> list[tuple[Any, Any]]:
        """Which tool, and how many milliseconds, did each request say would follow?"""
        return [(hints.get("next_tool"), hints.get("expected_tool_duration_ms")) for hints in self.hints()]

    def eventually(self, holds: Callable[[], bool], timeout_s: float = 5) -> bool:
        """Does it hold within `timeout_s` seconds? For what happens in another thread."""
        deadline = time.monotonic() + timeout_s
        while not holds() and time.monotonic() < deadline:
            time.sleep(0.005)
        return holds()


def _measured(text: str) -> dict[str, Any]:
    logprobs = [[-1.0, 0, "?"], [-1 / len(text), 1, "!"]]
    return {"meta_info": {"input_token_logprobs": logprobs, "output_token_logprobs": []}}


@contextmanager
def _served(server: StandIn) -> Iterator[StandIn]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(*server.answer(self.path, {}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*server.answer(self.path, body), stream=body.get("stream", False))

        def _send(self, status: int, answer: Any, *, stream: bool = False) -> None:
            text = json.dumps(answer)
            content = (f"data: {text}\n\ndata: [DONE]\n\n" if stream else text).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64  # forks connect at once; with the default of 5 some would try again a second later

    with Server(("127.0.0.1", 0), Handler) as http:
        Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        try:
            yield server
        finally:
            server.gate.set()
            http.shutdown()


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with _served(StandIn(astraea=True)) as server:
        yield server


@pytest.fixture
def plain_stand_in() -> Iterator[StandIn]:
    with _served(StandIn(astraea=False)) as server:
        yield server
