"""What does a client say of its program? The request envelope: parsed, validated, clipped; advisory throughout.

The payload of a `kv_hints` action `astraea.program`, or of `custom_params["astraea"]` (an object or its JSON text):

    program_id                 1 to 256 printable characters: segments with one id are one program
    program_class              at most 128: programs that behave alike; learned history is kept per class
    segment                    index of this segment in its program, from 0
    next_tool                  at most 128: the tool that is called when this segment ends
    expected_tool_duration_ms  how long that call will take
    final                      true on the program's last segment
    parent_id                  as program_id: the program that started this one
    structure                  what the program's class can do, see structure.py; once, later by `structure_ref`
    structure_ref              its digest
    node                       at most 128: this segment's node of that structure
    osl                        tokens that this segment is expected to generate
    priority                   of the request; higher goes first
    kv                         orders for the program's KV, see actions.py: the intake takes them out
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from astraea_sglang.errors import HintError
from astraea_sglang.structure import MAX_IGNORED, ProgramStructure
from astraea_sglang.structure import parse as parse_structure

ID_LENGTH = 256
NAME_LENGTH = 128
PAYLOAD_LENGTH = 65_536  # characters of JSON text
MAX_DURATION_MS = 7 * 24 * 3600 * 1000.0
MAX_SEGMENT = 1_000_000
MAX_OSL = 1_000_000.0  # tokens
MAX_PRIORITY = 1_000_000


@dataclass(frozen=True, slots=True)
class Hints:
    """What is known of a segment's program before it runs; `ignored` and `clipped` name the keys so treated.

    No client says what is in `identity` and after it: the intake does.
    """

    program_id: str | None = None
    program_class: str = ""
    segment: int | None = None
    next_tool: str | None = None
    expected_tool_s: float | None = None
    final: bool = False
    parent_id: str | None = None
    structure: ProgramStructure | None = None
    structure_ref: str | None = None
    node: str | None = None
    osl: float | None = None
    priority: int | None = None
    identity: str = field(default="", compare=False)  # by which convention the program was found
    owner: str = ""  # a digest of the API key that came with it: programs of different keys never meet
    tools: tuple[str, ...] = ()  # what the model may call
    forced: bool = False  # it must call one
    parser: str = ""  # of SGLang, which reads the calls from its output
    ignored: tuple[str, ...] = field(default=(), compare=False)
    clipped: tuple[str, ...] = field(default=(), compare=False)


KEYS = {
    "program_id", "program_class", "segment", "next_tool", "expected_tool_duration_ms", "final", "parent_id",
    "structure", "structure_ref", "node", "osl", "priority", "kv",
}  # fmt: skip


def parse(payload: object, **ours: Any) -> Hints:
    """What does a payload say? Raises HintError naming the first malformed field; unknown keys are listed.

    `ours` are those fields of the hints that no client says.
    """
    payload = decoded(payload)
    duration_ms, clipped_ms = _number(payload, "expected_tool_duration_ms", MAX_DURATION_MS)
    segment, clipped_segment = _number(payload, "segment", MAX_SEGMENT, whole=True)
    osl, clipped_osl = _number(payload, "osl", MAX_OSL)
    priority, clipped_priority = _signed(payload, "priority", MAX_PRIORITY)
    final = payload.get("final", False)
    if not isinstance(final, bool):
        raise HintError(f"final is {described(final)}; send true or false")
    structure = payload.get("structure")
    parsed = None if structure is None else parse_structure(structure)
    return Hints(
        program_id=_text(payload, "program_id", ID_LENGTH),
        program_class=_text(payload, "program_class", NAME_LENGTH) or "",
        segment=None if segment is None else int(segment),
        next_tool=_text(payload, "next_tool", NAME_LENGTH),
        expected_tool_s=None if duration_ms is None else duration_ms / 1000,
        final=final,
        parent_id=_text(payload, "parent_id", ID_LENGTH),
        structure=parsed,
        structure_ref=_text(payload, "structure_ref", NAME_LENGTH),
        node=_text(payload, "node", NAME_LENGTH),
        osl=osl,
        priority=priority,
        ignored=(
            *sorted(str(key)[:NAME_LENGTH] for key in islice((key for key in payload if key not in KEYS), MAX_IGNORED)),
            *(parsed.ignored if parsed else ()),
        ),
        clipped=clipped_ms + clipped_segment + clipped_osl + clipped_priority + (parsed.clipped if parsed else ()),
        **ours,
    )


def decoded(payload: object) -> Mapping[Any, Any]:
    """Which object is a payload, given as one or as its JSON text? Raises HintError when it is neither."""
    if isinstance(payload, str):
        payload = _json(payload)
    if not isinstance(payload, Mapping):
        raise HintError(
            f'the astraea hints are {described(payload)}; send a JSON object such as {{"program_id": "run-42"}}'
        )
    return payload


def identity(value: object, name: str) -> str:
    """Which program does a `session_id` (or the header `name`) mean? Raises HintError unless it is a sane string."""
    checked = _text({name: value}, name, ID_LENGTH)
    if checked is None:
        raise HintError(f"{name} is null; send 1 to {ID_LENGTH} printable characters or leave it out")
    return checked


def payload(hints: Hints) -> dict[str, Any]:
    """How do hints travel to the scheduler? The payload that `parse` reads back as equal hints."""
    duration_ms = None if hints.expected_tool_s is None else hints.expected_tool_s * 1000
    values = {
        "program_id": hints.program_id,
        "program_class": hints.program_class or None,
        "segment": hints.segment,
        "next_tool": hints.next_tool,
        "expected_tool_duration_ms": duration_ms,
        "final": hints.final or None,
        "parent_id": hints.parent_id,
        "structure": hints.structure and hints.structure.payload(),
        "structure_ref": hints.structure_ref,
        "node": hints.node,
        "osl": hints.osl,
        "priority": hints.priority,
    }
    return {key: value for key, value in values.items() if value is not None}


def _json(text: str) -> object:
    if len(text) > PAYLOAD_LENGTH:
        raise HintError(f"the astraea hints are {len(text)} characters long; send at most {PAYLOAD_LENGTH}")
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise HintError(f"the astraea hints are not JSON ({error}); send an object or its JSON text") from None


def _text(payload: Mapping[Any, Any], key: str, longest: int) -> str | None:
    value = payload.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise HintError(f"{key} is {described(value)}; send a string of 1 to {longest} characters")
    if not 1 <= len(value) <= longest:
        raise HintError(f"{key} is {len(value)} characters long; send 1 to {longest}")
    if not value.isprintable():
        raise HintError(f"{key} holds unprintable characters; send 1 to {longest} printable ones")
    return value


def _number(
    payload: Mapping[Any, Any], key: str, most: float, *, whole: bool = False
) -> tuple[float | None, tuple[str, ...]]:
    value = payload.get(key)
    if value is None:
        return None, ()
    wanted = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise HintError(f"{key} is {described(value)}; send {wanted} of 0 or more")
    if value < 0 or (isinstance(value, float) and not math.isfinite(value)):
        raise HintError(f"{key} is {value}; send {wanted} of 0 or more")
    return (value, ()) if value <= most else (most, (key,))


def _signed(payload: Mapping[Any, Any], key: str, most: int) -> tuple[int | None, tuple[str, ...]]:
    value = payload.get(key)
    if value is None:
        return None, ()
    if isinstance(value, bool) or not isinstance(value, int):
        raise HintError(f"{key} is {described(value)}; send a whole number")
    return max(-most, min(value, most)), () if abs(value) <= most else (key,)


def described(value: object) -> str:
    """In which words does an error name a JSON value that is not what was wanted?"""
    if isinstance(value, int) and value.bit_length() > 64:  # its digits may be more than Python prints
        return "a number of more than 64 bits"
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(
        type(value), f"a number ({value})" if isinstance(value, int | float) else f"a {type(value).__name__}"
    )
