"""From any request to hints: the engine end of every convention a client may use to name its program."""

import os
import time
from collections import Counter
from collections.abc import Container, Mapping
from itertools import islice
from typing import Any, NamedTuple

from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.kv_hints import KvHintAction, KvHintsEnvelope, decode_kv_hints_envelope

from astraea_sglang import conventions
from astraea_sglang.actions import KINDS, MOST_ACTIONS, KvAction, cache_control, check
from astraea_sglang.actions import parse as parse_action
from astraea_sglang.config import variable
from astraea_sglang.errors import HintError
from astraea_sglang.hints import ID_LENGTH, KEYS, Hints, decoded, described, parse, payload
from astraea_sglang.patches.args import POLICY

ACTION = "astraea.program"
ARRIVED = "arrived"  # our own key beside the client's: monotonic seconds of the host that rank 0 runs on, too
TENANT = "tenant"  # also our own: the value of the header that the server's operator named
TENANT_HEADER = variable("tenant_header")
OWNER, IDENTITY, TOOLS, FORCED, PARSER = "owner", "identity", "tools", "forced", "parser"  # and these, see Hints
counts: Counter[str] = Counter()


def normalise(manager: Any, obj: Any, request: Any = None) -> list[Hints]:
    """Put what a request says of its program into `obj.kv_hints`; what was taken, one for each of its prompts.

    None under another policy. Raises HintError (a ValueError: HTTP 400) when it is malformed.
    """
    if manager.server_args.schedule_policy != POLICY or not isinstance(obj, GenerateReqInput):
        return []
    headers = _headers(request)
    body = getattr(request, "_json", None)  # where the request keeps its body once it is parsed
    many = [value for value in (obj.kv_hints, obj.sampling_params) if isinstance(value, list)]
    try:
        told = _Told(
            conventions.read(headers, body if isinstance(body, dict) else {"session_id": obj.session_id}),
            _ours(manager, headers, body),
            cache_control(body),
        )
        taken = []
        if many:
            size = len(many[0])
            envelopes = obj.kv_hints if isinstance(obj.kv_hints, list) else [obj.kv_hints] * size
            params = obj.sampling_params if isinstance(obj.sampling_params, list) else [obj.sampling_params] * size
            if len(envelopes) != len(params):
                raise HintError(
                    f"kv_hints and sampling_params are lists of {len(envelopes)} and {len(params)}; send equally many"
                )
            both = [_envelope(e, p, told) for e, p in zip(envelopes, params, strict=True)]
            obj.kv_hints = [envelope for envelope, _ in both]
            taken = [hints for _, hints in both]
        else:
            obj.kv_hints, hints = _envelope(obj.kv_hints, obj.sampling_params, told)
            taken = [hints]
        params = obj.sampling_params
        obj.sampling_params = [_plain(each) for each in params] if isinstance(params, list) else _plain(params)
    except HintError:
        counts["rejected_requests"] += 1
        raise
    return taken


def hints_of(req: Any, structures: Container[str]) -> tuple[Hints, float, str]:
    """What does a scheduler request say of its program, when did it come (seconds; 0 if unknown), from which tenant?

    Its structure is not parsed once more when its digest is among `structures`.
    """
    told = _stamped(req)
    if told is None:
        return Hints(), 0.0, ""
    if told.get("structure_ref", "") in structures:
        told = {key: value for key, value in told.items() if key != "structure"}
    ours: dict[str, Any] = {
        "identity": told.get(IDENTITY, ""),
        "owner": told.get(OWNER, ""),
        "tools": tuple(told.get(TOOLS, ())),
        "forced": told.get(FORCED, False),
        "parser": told.get(PARSER, ""),
    }
    hints = Hints(**ours) if KEYS.isdisjoint(told) else parse(told, **ours)
    return hints, told[ARRIVED], told.get(TENANT, "")


def actions_of(req: Any) -> list[KvAction]:
    """What does a scheduler request order for its program's KV? In the order given; none if it came by another way."""
    if _stamped(req) is None:
        return []
    actions = (action for action in req.kv_hints.actions if action.action_type in KINDS)
    return [parse_action(action.action_type, action.payload, action.action_id) for action in actions]


def _stamped(req: Any) -> dict[str, Any] | None:
    for action in req.kv_hints.actions if req.kv_hints is not None else ():
        if action.action_type == ACTION and ARRIVED in action.payload:
            return action.payload
    return None


def _headers(request: Any) -> Mapping[str, str]:
    """Of a request over HTTP, or over gRPC, whose headers can only be asked for."""
    headers = getattr(request, "headers", {})
    return dict(headers.items()) if hasattr(headers, "items") else headers


class _Told(NamedTuple):
    """What the whole request says, whichever of its prompts is meant."""

    hints: Hints
    ours: dict[str, Any]
    retain: KvAction | None


def _ours(manager: Any, headers: Mapping[str, str], body: object) -> dict[str, Any]:
    """What no client may say itself: when the request came, from whom, and which tools its model may call."""
    offer = conventions.offer(body)
    tenant = headers.get(os.environ.get(TENANT_HEADER) or "", "")
    told = {TENANT: tenant[:ID_LENGTH], OWNER: conventions.owner(headers)}
    if offer.tools:
        told |= {TOOLS: list(offer.tools), FORCED: offer.forced, PARSER: manager.config_value("tool_call_parser")}
    return {ARRIVED: time.monotonic()} | {key: value for key, value in told.items() if value}


def _envelope(envelope: Any, sampling_params: Any, told: _Told) -> tuple[KvHintsEnvelope, Hints]:
    given = decode_kv_hints_envelope(envelope) if envelope else None
    actions = given.actions if given else []
    said = _said([a.payload for a in actions if a.action_type == ACTION], sampling_params)
    hints = conventions.together(parse(said), told.hints) if said else told.hints
    counts["ignored_keys"] += len(hints.ignored)
    counts["clipped_values"] += len(hints.clipped)
    others = [a for a in actions if a.action_type != ACTION]
    listed = _listed(said.get("kv"))
    orders = [*(a for a in others if a.action_type in KINDS), *listed]
    check([(a.action_type, a.payload, a.action_id) for a in orders])
    if told.retain is not None and hints.program_id is not None:
        listed.append(_action(told.retain.id, told.retain.kind, {"ttl_s": told.retain.ttl_s}))
    ours = _action("astraea", ACTION, payload(hints) | told.ours | {IDENTITY: hints.identity})
    carried = KvHintsEnvelope(
        protocol_version=given.protocol_version if given else "1",
        message_id=given.message_id if given else "astraea",
        actions=[*others, *listed, ours],
    )
    return carried, hints


def _action(id: Any, kind: Any, payload: dict[str, Any]) -> KvHintAction:
    return KvHintAction(action_id=id, action_type=kind, action_version="1", payload=payload)


def _listed(items: object) -> list[KvHintAction]:
    """The hints' list `kv` as actions, not yet parsed: one more than is allowed tells that there are too many."""
    if items is None:
        return []
    example = '{"type": "kv.pin", "ttl_s": 30}'
    if not isinstance(items, list):
        raise HintError(f"kv is {described(items)}; send a list of objects such as {example}")
    actions = []
    for i, item in enumerate(islice(items, MOST_ACTIONS + 1)):
        if not isinstance(item, Mapping):
            raise HintError(f"kv[{i}] is {described(item)}; send an object such as {example}")
        rest = {key: value for key, value in item.items() if key not in ("type", "id")}
        actions.append(_action(item.get("id", f"kv.{i}"), item.get("type"), rest))
    return actions


def _said(payloads: list[Any], sampling_params: Any) -> Mapping[Any, Any]:
    """The explicit hints: those in kv_hints, else those in custom_params."""
    custom = sampling_params.get("custom_params") if isinstance(sampling_params, dict) else None
    if not payloads and isinstance(custom, dict) and "astraea" in custom:
        payloads = [custom["astraea"]]
    return decoded(payloads[-1]) if payloads else {}


def _plain(sampling_params: Any) -> Any:
    """Sampling parameters without our hints: SGLang sends custom_params on as one level of JSON."""
    custom = sampling_params.get("custom_params") if isinstance(sampling_params, dict) else None
    if not isinstance(custom, dict) or "astraea" not in custom:
        return sampling_params
    rest = {key: value for key, value in custom.items() if key != "astraea"}
    return {**sampling_params, "custom_params": rest or None}
