"""How does a client learn what was taken of its request? As `meta_info["astraea_program"]`, and as response headers.

    x-astraea-program   the program it belongs to, percent-encoded; missing if it belongs to none
    x-astraea-identity  by which convention it was found: "header x-session-id", "body session_id", "hints", "prompt"
    x-astraea-hints     accepted=osl,next_tool; clipped=osl; ignored=nvext.agent_hints.foo
    x-astraea-kv        what became of each order for its KV: pin-1=clipped

The last, and a program recognised by its prompt, are known once the scheduler has seen the request: a stream whose
headers go out before its first token does not have them (/generate, /v1/messages, /v1/responses).
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from astraea_sglang.hints import Hints, payload
from astraea_sglang.patches import answers
from astraea_sglang.patches.intake import normalise

SCOPE = "astraea"  # of a request: what its response headers say
LONGEST = 1024  # characters of a header
SAFE = " !#$&'()*+,-./:;<=>?@[]^_`{|}~"  # printable ASCII in a header; the rest is percent-encoded


def watched(original: Callable[..., AsyncGenerator[Any, None]], manager: Any, obj: Any, request: Any = None) -> Any:
    """AROUND TokenizerManager.generate_request: read the hints, and tell the client which were taken."""
    taken = [told(hints) for hints in normalise(manager, obj, request)]
    outputs = original(manager, obj, request)
    if not taken:
        return outputs
    scope = getattr(request, "scope", {})
    scope[SCOPE] = taken[0] if len(taken) == 1 else {}
    return _told(outputs, taken, scope[SCOPE])


def told(hints: Hints) -> dict[str, Any]:
    """Which identity and hints were taken? JSON-ready, without what is empty."""
    named = {"program_id": hints.program_id, "identity": hints.identity}
    keys = {
        "accepted": [key for key in payload(hints) if key != "program_id"],
        "clipped": list(hints.clipped),
        "ignored": list(hints.ignored),
    }
    return {key: value for key, value in (named | keys).items() if value}


async def _told(
    outputs: AsyncGenerator[Any, None], taken: list[dict[str, Any]], scope: dict[str, Any]
) -> AsyncGenerator[Any, None]:
    new = set(range(len(taken)))  # outputs whose first chunk has not come
    try:
        async for output in outputs:
            for i, each in enumerate(output if isinstance(output, list) else [output]):
                meta = each.get("meta_info") if isinstance(each, dict) else None
                at = each.get("index", 0 if len(taken) == 1 else i) if meta is not None else None
                if meta is not None and at in new:
                    new.discard(at)
                    found = meta.get(answers.PROGRAM) or [{}]
                    meta[answers.PROGRAM] = taken[at] | found[0]
                    if len(taken) == 1:
                        scope.update(meta[answers.PROGRAM], kv=meta.get(answers.KEY))
            yield output
    finally:
        await outputs.aclose()


class Headers:
    """ASGI middleware: response headers that say what was taken of a request. None on routes that generate nothing."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Serve a request."""

        async def sent(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and scope.get(SCOPE):
                message["headers"] = [*message.get("headers", ()), *headers(scope[SCOPE])]
            await send(message)

        await self.app(scope, receive, sent if scope["type"] == "http" else send)


def headers(taken: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """How do response headers say what was taken? Whatever a client sent, a value is one line of printable ASCII."""
    said = {
        "program": taken.get("program_id"),
        "identity": taken.get("identity"),
        "hints": "; ".join(f"{k}={','.join(taken[k])}" for k in ("accepted", "clipped", "ignored") if taken.get(k)),
        "kv": ", ".join(f"{each['id']}={each['status']}" for each in taken.get("kv") or ()),
    }
    return [
        (f"x-astraea-{name}".encode(), quote(value, safe="" if name == "program" else SAFE)[:LONGEST].encode())
        for name, value in said.items()
        if value
    ]
