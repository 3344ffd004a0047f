"""What may a client order for its program's KV, and what became of it? Parsed and bounded here, executed elsewhere.

The payload of a `kv_hints` action of KINDS, or of an item {"type": ..., "id": ..., ...} of the hints' list `kv`:

    ttl_s   for how long: seconds, above 0; or `ttl` as Anthropic spells it, "30s", "5m" or "1h"
    tokens  for how many tokens: a whole number, from 1; unknown keys are ignored
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from astraea_sglang.errors import HintError
from astraea_sglang.hints import NAME_LENGTH, described, identity

KINDS = ("kv.pin", "kv.retain", "kv.demote", "kv.prefetch", "kv.deref")
MOST_ACTIONS = 16
MAX_TOKENS = 1_000_000_000
CACHE_CONTROL_TTL_S = 300.0  # Anthropic's default
MOST_BLOCKS = 10_000  # of a body that are looked at for cache_control: a few milliseconds


@dataclass(frozen=True, slots=True)
class KvAction:
    """One order for a program's KV; `kind` is one of KINDS, None means that the client left it to us."""

    id: str
    kind: str
    ttl_s: float | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the order `id`: `status` is accepted, clipped, deferred or rejected; the rest is granted."""

    id: str
    kind: str
    status: str
    why: str = ""
    ttl_s: float | None = None
    tokens: int | None = None

    def payload(self) -> dict[str, Any]:
        """How is the client told? JSON-ready, without the empty fields."""
        return {key: value for key, value in asdict(self).items() if value is not None and value != ""}


def parse(kind: object, payload: object, id: object) -> KvAction:
    """Which order do an action's type, payload and id give? Raises HintError naming the first malformed field."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise HintError(f"type is {_seen(kind)}; send one of {', '.join(KINDS)}")
    id = identity(id, f"the id of {kind}")
    if not isinstance(payload, Mapping):
        raise HintError(f'the payload of {kind} {id!r} is {_seen(payload)}; send an object such as {{"ttl_s": 30}}')
    tokens = payload.get("tokens")
    if tokens is not None and not (type(tokens) is int and 1 <= tokens <= MAX_TOKENS):
        raise HintError(f"tokens of {kind} {id!r} is {_seen(tokens)}; send a whole number from 1 to {MAX_TOKENS}")
    return KvAction(id, kind, _ttl_s(payload, f"{kind} {id!r}"), tokens)


def check(actions: Sequence[tuple[object, object, object]]) -> None:
    """Raises HintError unless `parse` takes each of a request's (type, payload, id), and there are not too many."""
    if len(actions) > MOST_ACTIONS:
        raise HintError(f"the request holds more than {MOST_ACTIONS} kv actions; send at most {MOST_ACTIONS}")
    for action in actions:
        parse(*action)


def cache_control(body: object) -> KvAction | None:
    """Does an Anthropic-style body ask for its prompt to be kept? One kv.retain with the longest ttl it names, or None.

    Looks at the body, its system blocks, tools and, last first, its messages' blocks; skips what is malformed there.
    """
    blocks = islice(_blocks(body), MOST_BLOCKS) if isinstance(body, dict) else ()
    ttls = [ttl_s for ttl_s in map(_retention_s, blocks) if ttl_s is not None]
    return KvAction("cache_control", "kv.retain", max(ttls)) if ttls else None


def _blocks(body: dict[Any, Any]) -> Iterator[object]:
    yield body
    system, tools, messages = (v if isinstance(v := body.get(k), list) else [] for k in ("system", "tools", "messages"))
    yield from system
    yield from tools
    for message in reversed(messages):
        content = message.get("content") if isinstance(message, dict) else None
        yield from content if content and isinstance(content, list) else (None,)  # it counts: there may be a million


def _retention_s(block: object) -> float | None:
    control = block.get("cache_control") if isinstance(block, dict) else None
    if not isinstance(control, dict) or control.get("type") != "ephemeral":
        return None
    return CACHE_CONTROL_TTL_S if control.get("ttl") is None else _duration_s(control["ttl"])


def _ttl_s(payload: Mapping[Any, Any], of: str) -> float | None:
    value, text = payload.get("ttl_s"), payload.get("ttl")
    if value is not None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= sys.float_info.max:  # which says no to NaN, too
            raise HintError(f"ttl_s of {of} is {_seen(value)}; send a finite number of seconds above 0")
        return float(value)
    if text is not None and (value := _duration_s(text)) is None:
        raise HintError(f'ttl of {of} is {_seen(text)}; send text such as "30s", "5m" or "1h", or ttl_s in seconds')
    return value


def _duration_s(text: object) -> float | None:
    match = re.fullmatch("([0-9]{1,9})([smh])", text) if isinstance(text, str) else None
    return int(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[match[2]] or None if match else None


def _seen(value: object) -> str:
    return repr(value[:NAME_LENGTH]) if isinstance(value, str) else described(value)
