"""From any request to hints: the engine end of every convention a client may use to name its program."""

import time
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.kv_hints import decode_kv_hints_envelope

from astraea_sglang.errors import HintError
from astraea_sglang.hints import Hints, identity, parse, payload
from astraea_sglang.patches.args import POLICY
from astraea_sglang.structure import digest

ACTION = "astraea.program"
ARRIVED = "arrived"  # our own key beside the client's: monotonic seconds of the host that rank 0 runs on, too
counts: Counter[str] = Counter()


def normalise(manager: Any, obj: Any, request: Any = None) -> None:
    """BEFORE TokenizerManager.generate_request: put what the client says of its program into `obj.kv_hints`.

    Raises HintError (a ValueError: HTTP 400) when it is malformed.
    """
    if manager.server_args.schedule_policy != POLICY or not isinstance(obj, GenerateReqInput):
        return
    headers = request.headers if request is not None else {}
    many = [value for value in (obj.kv_hints, obj.sampling_params) if isinstance(value, list)]
    try:
        if many:
            size = len(many[0])
            envelopes = obj.kv_hints if isinstance(obj.kv_hints, list) else [obj.kv_hints] * size
            params = obj.sampling_params if isinstance(obj.sampling_params, list) else [obj.sampling_params] * size
            # lists of unequal length are SGLang's to refuse
            if len(envelopes) == len(params):
                obj.kv_hints = [
                    _envelope(e, p, obj.session_id, headers) for e, p in zip(envelopes, params, strict=True)
                ]
        else:
            obj.kv_hints = _envelope(obj.kv_hints, obj.sampling_params, obj.session_id, headers)
    except HintError:
        counts["rejected_requests"] += 1
        raise


def hints_of(req: Any, structures: Container[str]) -> tuple[Hints, float]:
    """What does a scheduler request say of its program, and when did it reach the server (seconds; 0 if unknown)?

    Its structure is not parsed once more when its digest is among `structures`.
    """
    for action in req.kv_hints.actions if req.kv_hints is not None else ():
        if action.action_type == ACTION and ARRIVED in action.payload:
            told = dict(action.payload)
            if told.get("structure_ref", "") in structures:
                told.pop("structure", None)
            return parse(told), told[ARRIVED]
    return Hints(), 0.0


def _envelope(envelope: Any, sampling_params: Any, session_id: Any, headers: Mapping[str, str]) -> Any:
    decoded = decode_kv_hints_envelope(envelope) if envelope else None
    actions = decoded.actions if decoded else []
    hints = _hints([a.payload for a in actions if a.action_type == ACTION], sampling_params, session_id, headers)
    counts["ignored_keys"] += len(hints.ignored)
    counts["clipped_values"] += len(hints.clipped)
    ours = {
        "action_id": "astraea",
        "action_type": ACTION,
        "action_version": "1",
        "payload": payload(hints) | {ARRIVED: time.monotonic()},
    }
    others = [
        {name: getattr(a, name) for name in ("action_id", "action_type", "action_version", "payload")}
        for a in actions
        if a.action_type != ACTION
    ]
    return {
        "protocol_version": decoded.protocol_version if decoded else "1",
        "message_id": decoded.message_id if decoded else "astraea",
        "actions": [*others, ours],
    }


def _hints(payloads: list[Any], sampling_params: Any, session_id: Any, headers: Mapping[str, str]) -> Hints:
    """Explicit hints first (kv_hints, else custom_params), then the body's session_id, then the headers."""
    custom = sampling_params.get("custom_params") if isinstance(sampling_params, dict) else None
    if not payloads and isinstance(custom, dict) and "astraea" in custom:
        payloads = [custom["astraea"]]
    hints = parse(payloads[-1]) if payloads else Hints()
    if session_id is not None:
        session_id = identity(session_id, "session_id")
    header_id, parent = headers.get("x-dynamo-session-id"), headers.get("x-dynamo-parent-session-id")
    if session_id is None and header_id is not None:
        session_id = identity(header_id, "the header X-Dynamo-Session-ID")
    if parent is not None:
        parent = identity(parent, "the header X-Dynamo-Parent-Session-ID")
    return replace(
        hints,
        program_id=hints.program_id or session_id,
        parent_id=hints.parent_id or parent,
        structure_ref=digest(hints.structure) if hints.structure else hints.structure_ref,
        final=hints.final or headers.get("x-dynamo-session-final", "").lower() == "true",
    )
