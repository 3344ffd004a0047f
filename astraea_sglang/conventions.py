"""Which program does an ordinary request belong to, and what else does it say? Every convention clients use.

Identity, the first that is there; what clients of this package say (`hints.py`) goes before all of it:

    body      program_id, session_id, agent_hint.session_id (vLLM RFC 52113)
    headers   X-Dynamo-Session-ID, x-claude-code-session-id (with x-claude-code-agent-id: a sub-agent of it),
              session-id and session_id (Codex), x-session-id (OpenCode), x-session-affinity (llm-d),
              x-correlation-id (aiperf)
    body      nvext.agent_hints.prefix_id (NeMo Agent Toolkit), agent_hints.workflow_id (SGLang RFC 24656)

Parents: X-Dynamo-Parent-Session-ID, x-claude-code-parent-agent-id, x-parent-session-id, agent_hint.parent_session_id.
The end: X-Dynamo-Session-Final: true. Hints: nvext.agent_hints {osl, priority} (NVIDIA Dynamo), agent_hints
{agent_id, expected_tool_duration_ms, step_id} (SGLang RFC 24656).

Programs of different API keys never meet, whatever they are called. What is malformed in a field that an engine or
Dynamo defines is the client's error; elsewhere it is counted and ignored, as its client may not know that we read it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from astraea_sglang.errors import HintError
from astraea_sglang.hints import NAME_LENGTH, Hints, identity, parse
from astraea_sglang.structure import digest

STRICT_BODY = ("program_id", "session_id")
STRICT_HEADERS = {"x-dynamo-session-id": "X-Dynamo-Session-ID"}
HEADERS = (
    *STRICT_HEADERS, "x-claude-code-session-id", "session-id", "session_id", "x-session-id", "x-session-affinity",
    "x-correlation-id",
)  # fmt: skip
NESTED = (("agent_hint", "session_id"),)
LAST = (("nvext", "agent_hints", "prefix_id"), ("agent_hints", "workflow_id"))
ADVICE = {  # where -> which hint it is
    ("nvext", "agent_hints", "osl"): "osl",
    ("nvext", "agent_hints", "priority"): "priority",
    ("agent_hints", "agent_id"): "program_class",
    ("agent_hints", "expected_tool_duration_ms"): "expected_tool_duration_ms",
}
KEY_HEADERS = ("authorization", "x-api-key", "api-key")  # OpenAI's, Anthropic's and Azure's
MOST_OFFERED = 128  # tools of one request whose names are kept
MOST_IGNORED = 16
NOTHING = Hints()
STEP = ("agent_hints", "step_id")  # a node, for who declares a structure: else it may be new in every request


class Offer(NamedTuple):
    """Which tools may the model call? By name; `forced` where it must, as then the output is a JSON list of calls."""

    tools: tuple[str, ...]
    forced: bool = False


def read(headers: Mapping[str, str], body: object) -> Hints:
    """What does a request say of its program, by anyone's convention? Raises HintError for a malformed identity.

    `headers` are looked up in lower case. A list of session_ids, as SGLang takes for a batch, names no program.
    """
    told = body if isinstance(body, dict) else {}
    ignored: list[str] = []
    program, how = _identity(headers, told, ignored)
    parent = _parent(headers, told, ignored)
    program, how, parent = _claude_code(headers, program, how, parent, ignored)
    advice, step = NOTHING, None
    if "nvext" in told or "agent_hints" in told:
        payload, taken = _advice(told, ignored)
        advice = parse(payload) if payload else NOTHING
        step = _name(told, STEP, ignored)
        ignored.extend(_unread(told, taken))
    return Hints(
        program_id=program,
        parent_id=parent,
        program_class=advice.program_class,
        expected_tool_s=advice.expected_tool_s,
        osl=advice.osl,
        priority=advice.priority,
        node=step,
        final=headers.get("x-dynamo-session-final", "").strip().lower() == "true",
        identity=how,
        ignored=tuple(ignored[:MOST_IGNORED]),
        clipped=advice.clipped,
    )


def together(hints: Hints, told: Hints) -> Hints:
    """What does a request say in all? `hints` is what clients of this package say, `told` what `read` finds."""
    declares = hints.structure is not None or hints.structure_ref is not None
    return replace(
        hints,
        program_id=hints.program_id or told.program_id,
        program_class=hints.program_class or told.program_class,
        parent_id=hints.parent_id or told.parent_id,
        expected_tool_s=told.expected_tool_s if hints.expected_tool_s is None else hints.expected_tool_s,
        osl=told.osl if hints.osl is None else hints.osl,
        priority=told.priority if hints.priority is None else hints.priority,
        node=hints.node or (told.node if declares else None),
        structure_ref=digest(hints.structure) if hints.structure else hints.structure_ref,
        final=hints.final or told.final,
        identity="hints" if hints.program_id is not None else told.identity,
        ignored=hints.ignored + told.ignored + (() if declares or told.node is None else (".".join(STEP),)),
        clipped=hints.clipped + told.clipped,
    )


def owner(headers: Mapping[str, str]) -> str:
    """Whose request is it? A digest of its API key, or keys, "" without one. No key can be found from it."""
    given = [value.strip() for name in KEY_HEADERS if (value := headers.get(name))]
    keys = {key[7:].strip() if key[:7].lower() == "bearer " else key for key in given} - {""}
    if not keys:
        return ""
    return hashlib.blake2b("\0".join(sorted(keys)).encode(errors="replace"), digest_size=16).hexdigest()


def offer(body: object) -> Offer:
    """Which tools does a body of the chat, Anthropic or Responses API offer its model? None when it forbids them."""
    told = body if isinstance(body, dict) else {}
    tools, choice = told.get("tools"), told.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if not isinstance(tools, list) or kind == "none":
        return Offer(())
    names = (_tool_name(tool) for tool in islice(tools, MOST_OFFERED))
    return Offer(tuple(name for name in names if name), forced=kind in ("required", "any", "function", "tool"))


def _tool_name(tool: object) -> str | None:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name[:NAME_LENGTH] if isinstance(name, str) else None


def _identity(headers: Mapping[str, str], body: dict[Any, Any], ignored: list[str]) -> tuple[str | None, str]:
    for key in STRICT_BODY:
        if (value := body.get(key)) is not None and not isinstance(value, list):
            return identity(value, key), f"body {key}"
    for path in NESTED:
        if (name := _name(body, path, ignored)) is not None:
            return name, f"body {'.'.join(path)}"
    for key in HEADERS:
        if (value := headers.get(key)) is not None:
            if key in STRICT_HEADERS:
                return identity(value, f"the header {STRICT_HEADERS[key]}"), f"header {key}"
            if (name := _sane(value, key, ignored)) is not None:
                return name, f"header {key}"
    for path in LAST:
        if (name := _name(body, path, ignored)) is not None:
            return name, f"body {'.'.join(path)}"
    return None, ""


def _parent(headers: Mapping[str, str], body: dict[Any, Any], ignored: list[str]) -> str | None:
    if (value := headers.get("x-dynamo-parent-session-id")) is not None:
        return identity(value, "the header X-Dynamo-Parent-Session-ID")
    if (value := headers.get("x-parent-session-id")) is not None:
        return _sane(value, "x-parent-session-id", ignored)
    return _name(body, ("agent_hint", "parent_session_id"), ignored)


def _claude_code(
    headers: Mapping[str, str], program: str | None, how: str, parent: str | None, ignored: list[str]
) -> tuple[str | None, str, str | None]:
    """Claude Code's sub-agents share their session's header: each is a child of the session, or of an agent."""
    agent = headers.get("x-claude-code-agent-id")
    if how != "header x-claude-code-session-id" or agent is None:
        return program, how, parent
    child = _sane(f"{program}:{agent}", "x-claude-code-agent-id", ignored)
    if child is None:
        return program, how, parent
    above = headers.get("x-claude-code-parent-agent-id")
    parent = parent or (_sane(f"{program}:{above}", "x-claude-code-parent-agent-id", ignored) if above else program)
    return child, how, parent


def _advice(body: dict[Any, Any], ignored: list[str]) -> tuple[dict[str, Any], set[tuple[str, ...]]]:
    """The hints in it, each tried alone: one that is malformed is ignored."""
    payload, taken = {}, {*LAST, STEP}
    for path, key in ADVICE.items():
        if (value := _at(body, path)) is None:
            continue
        taken.add(path)
        try:
            parse({key: value})
            payload[key] = value
        except HintError:
            ignored.append(".".join(path))
    return payload, taken


def _unread(body: dict[Any, Any], taken: set[tuple[str, ...]]) -> Iterator[str]:
    for parent in (("nvext", "agent_hints"), ("agent_hints",)):
        values = _at(body, parent)
        for key in islice(values, MOST_IGNORED) if isinstance(values, dict) else ():
            if (*parent, key) not in taken:
                yield ".".join((*parent, str(key)[:NAME_LENGTH]))


def _name(body: dict[Any, Any], path: tuple[str, ...], ignored: list[str]) -> str | None:
    value = _at(body, path)
    return None if value is None else _sane(value, ".".join(path), ignored)


def _sane(value: object, name: str, ignored: list[str]) -> str | None:
    try:
        return identity(value, name)
    except HintError:
        ignored.append(name)
        return None


def _at(body: dict[Any, Any], path: tuple[str, ...]) -> object:
    value: object = body
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
