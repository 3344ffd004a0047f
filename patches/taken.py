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
    params = obj.sampling_params[0] if isinstance(obj.sampling_params, list) else obj.sampling_params
    samples = params.get("n") or 1 if isinstance(params, dict) else 1
    scope = getattr(request, "scope", {})
    alone = len(taken) == samples == 1
    scope[SCOPE] = dict(taken[0]) if alone else {}
    return _told(outputs, taken, samples, scope[SCOPE] if alone else None)


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
    outputs: AsyncGenerator[Any, None], taken: list[dict[str, Any]], samples: int, scope: dict[str, Any] | None
) -> AsyncGenerator[Any, None]:
    """The outputs; the first of each of a request's samples says what was taken of its prompt."""
    told: set[int] = set()
    try:
        async for output in outputs:
            for i, each in enumerate(output if isinstance(output, list) else [output]):
                meta = each.get("meta_info") if isinstance(each, dict) else None
                if meta is None:
                    continue
                at = each.get("index", i)
                found = meta.get(answers.PROGRAM)
                if at not in told or found is not None:  # a stream's last chunk repeats what the scheduler found
                    told.add(at)
                    mine = taken[min(at // samples, len(taken) - 1)]
                    meta[answers.PROGRAM] = mine | (found[0] if isinstance(found, list) and found else {})
                    if scope is not None:
                        scope |= meta[answers.PROGRAM] | {"kv": meta.get(answers.KEY)}
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
    return [(f"x-astraea-{name}".encode(), _line(value, name == "program")) for name, value in said.items() if value]


def _line(value: str, whole: bool) -> bytes:
    if whole:
        return quote(value, safe="", errors="replace").encode()
    line = quote(value[:LONGEST], safe=SAFE, errors="replace")[:LONGEST].strip()
    return (line.rpartition("%")[0] if "%" in line[-2:] else line).strip().encode()
