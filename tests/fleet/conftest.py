"""A stand-in for the network peer: an HTTP server that speaks just enough of SGLang's protocol, in bytes as tokens."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Body = dict[str, Any]


class StandIn(ThreadingHTTPServer):
    """Answers every /generate with the chunks that `answer` makes of the body.

    A number is sent as status, a text as it is, and None hangs up.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: Callable[[Body], list[Body] | str | int | None] = self.obedient
        self.bodies: list[Body] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    @staticmethod
    def reference(body: Body) -> str:
        return json.loads(body["sampling_params"]["ebnf"].removeprefix("root ::= "))

    @staticmethod
    def chunk(text: str, **meta: Any) -> Body:
        figures = {"queue_time": 0.25, "prompt_tokens": 100, "cached_tokens": 0, "completion_tokens": len(text)} | meta
        return {"text": text, "output_ids": list(text.encode()), "meta_info": figures}

    def obedient(self, body: Body) -> list[Body]:
        """The two chunks of a segment that came out as it was constrained to."""
        call, length = self.reference(body), {"prompt_tokens": len(body["input_ids"])}
        return [self.chunk(call[:3], **length), self.chunk(call, **length)]

    @staticmethod
    def hint(body: Body) -> Body:
        (action,) = body["kv_hints"]["actions"]
        assert action["action_type"] == "astraea.program"
        return action["payload"]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        metrics = '# TYPE sglang:evicted_tokens counter\nsglang:evicted_tokens_total{tp_rank="0"} 7\n'
        info = {"max_total_num_tokens": 3072, "max_running_requests": 8}
        self._send(200, metrics if self.path == "/metrics" else json.dumps(info))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/flush_cache":
            return self._send(200, "Cache flushed.")
        assert isinstance(self.server, StandIn)
        self.server.bodies.append(json.loads(body))
        answer = self.server.answer(self.server.bodies[-1])
        if isinstance(answer, int):
            return self._send(answer, "no")
        if answer is None:
            return self.connection.close()
        lines = answer if isinstance(answer, str) else "".join(f"data: {json.dumps(c)}\n\n" for c in answer)
        self._send(200, lines + "data: [DONE]\n\n")

    def _send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
