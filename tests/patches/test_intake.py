import json
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.kv_hints import decode_kv_hints_envelope
from starlette.requests import Request

from astraea_sglang.errors import HintError
from astraea_sglang.hints import Hints
from astraea_sglang.patches import intake
from astraea_sglang.structure import digest, parse


def action(action_type="astraea.program", **payload) -> dict:
    return {"action_id": "0", "action_type": action_type, "action_version": "1", "payload": payload}


def envelope(*actions: dict) -> dict:
    return {"protocol_version": "1", "message_id": "m", "actions": list(actions)}


def taken_in(policy="astraea", headers=(), **fields) -> Any:
    obj = GenerateReqInput(**{"text": "hello", "sampling_params": {}} | fields)
    request = Request({"type": "http", "headers": [(k.encode(), v.encode()) for k, v in dict(headers).items()]})
    intake.normalise(SimpleNamespace(server_args=SimpleNamespace(schedule_policy=policy)), obj, request)
    return obj


def read(kv_hints) -> Hints:
    return intake.hints_of(SimpleNamespace(kv_hints=decode_kv_hints_envelope(kv_hints)), ())[0]


@pytest.mark.parametrize(
    "fields",
    [
        dict(session_id="run-42"),
        dict(kv_hints=envelope(action(program_id="run-42"))),
        dict(sampling_params={"custom_params": {"astraea": {"program_id": "run-42"}}}),
        dict(sampling_params={"custom_params": {"astraea": json.dumps({"program_id": "run-42"})}}),
        dict(headers={"X-Dynamo-Session-ID".lower(): "run-42"}),
    ],
    ids=["session_id", "kv_hints", "custom_params", "custom_params as text", "header"],
)
def test_every_convention_names_the_program(fields):
    assert read(taken_in(**fields).kv_hints).program_id == "run-42"


def test_explicit_hints_win_over_session_id_over_header():
    headers = {"x-dynamo-session-id": "header"}
    assert read(taken_in(headers=headers, session_id="body").kv_hints).program_id == "body"
    obj = taken_in(headers=headers, session_id="body", kv_hints=envelope(action(program_id="hint")))
    assert read(obj.kv_hints).program_id == "hint"


def test_hints_without_an_id_belong_to_the_session():
    obj = taken_in(session_id="s", kv_hints=envelope(action(program_class="react", next_tool="search")))
    assert read(obj.kv_hints) == Hints("s", "react", next_tool="search")


def test_headers_name_parent_and_end():
    headers = {"x-dynamo-session-id": "s", "x-dynamo-parent-session-id": "p", "x-dynamo-session-final": "true"}
    assert read(taken_in(headers=headers).kv_hints) == Hints("s", final=True, parent_id="p")


def test_a_request_that_says_nothing_is_anonymous_and_stamped():
    obj = taken_in()
    req = SimpleNamespace(kv_hints=decode_kv_hints_envelope(obj.kv_hints))
    hints, arrived = intake.hints_of(req, ())
    assert hints == Hints() and arrived > 0


def test_actions_of_others_pass_untouched():
    obj = taken_in(kv_hints=envelope(action("kv.demote", session_id="x"), action(program_id="p")))
    kinds = [a.action_type for a in decode_kv_hints_envelope(obj.kv_hints).actions]
    assert kinds == ["kv.demote", "astraea.program"]


STRUCTURE = {"nodes": [{"id": "plan", "kind": "segment", "next": ["act"]}, {"id": "act", "kind": "segment"}]}


def test_a_structure_travels_with_its_digest_and_is_parsed_where_it_is_new():
    obj = taken_in(kv_hints=envelope(action(structure=STRUCTURE, structure_ref="made up", node="plan")))
    envelope_in = SimpleNamespace(kv_hints=decode_kv_hints_envelope(obj.kv_hints))
    new, known = (intake.hints_of(envelope_in, structures)[0] for structures in ((), (digest(STRUCTURE),)))
    assert new.structure == parse(STRUCTURE) and known.structure is None
    assert new.structure_ref == known.structure_ref == digest(STRUCTURE) and new.node == "plan"


def test_a_client_cannot_set_the_arrival():
    obj = taken_in(kv_hints=envelope(action(program_id="p", arrived=-1e9)))
    assert intake.hints_of(SimpleNamespace(kv_hints=decode_kv_hints_envelope(obj.kv_hints)), ())[1] > 0


def test_a_batch_takes_each_items_own_hints():
    obj = taken_in(text=["a", "b"], kv_hints=[envelope(action(program_id="p")), envelope(action(program_id="q"))])
    assert [read(e).program_id for e in obj.kv_hints] == ["p", "q"]


def test_with_another_policy_a_request_is_left_alone():
    obj = taken_in(policy="fcfs", session_id="", kv_hints={"not": "an envelope"})
    assert obj.kv_hints == {"not": "an envelope"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (dict(session_id=7), "session_id"),
        (dict(session_id="x" * 300), "session_id"),
        (dict(headers={"x-dynamo-session-id": "x" * 300}), "X-Dynamo-Session-ID"),
        (dict(kv_hints=envelope(action(program_id=7))), "program_id"),
        (dict(sampling_params={"custom_params": {"astraea": {"segment": "one"}}}), "segment"),
        (dict(sampling_params={"custom_params": {"astraea": "{"}}), "not JSON"),
    ],
)
def test_malformed_hints_are_refused_with_the_field_named(fields, named):
    before = intake.counts["rejected_requests"]
    with pytest.raises(HintError, match=named):
        taken_in(**fields)
    assert intake.counts["rejected_requests"] == before + 1


def test_unknown_keys_are_counted():
    before = intake.counts["ignored_keys"]
    taken_in(kv_hints=envelope(action(program_id="p", colour="red", mood="good")))
    assert intake.counts["ignored_keys"] == before + 2
