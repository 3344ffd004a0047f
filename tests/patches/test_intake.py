import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.entrypoints.http_server import ORJSONRequest
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.kv_hints import decode_kv_hints_envelope

from astraea_sglang.actions import MOST_ACTIONS, KvAction
from astraea_sglang.errors import HintError
from astraea_sglang.hints import Hints
from astraea_sglang.patches import intake
from astraea_sglang.structure import digest, parse


def action(action_type="astraea.program", **payload) -> dict:
    return {"action_id": "0", "action_type": action_type, "action_version": "1", "payload": payload}


def envelope(*actions: dict) -> dict:
    return {"protocol_version": "1", "message_id": "m", "actions": list(actions)}


def taken_in(policy="astraea", headers=(), body=None, **fields) -> Any:
    async def receive():
        return {"type": "http.request", "body": json.dumps(body).encode()}

    obj = GenerateReqInput(**{"text": "hello", "sampling_params": {}} | fields)
    scope = {"type": "http", "headers": [(k.encode(), v.encode()) for k, v in dict(headers).items()]}
    request = ORJSONRequest(scope, receive)
    if body is not None:
        asyncio.run(request.json())  # as FastAPI does before it calls a route
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
    hints, arrived, _ = intake.hints_of(req, ())
    assert hints == Hints() and arrived > 0


def test_actions_of_others_pass_untouched():
    obj = taken_in(kv_hints=envelope(action("kv.demote", session_id="x"), action(program_id="p")))
    kinds = [a.action_type for a in decode_kv_hints_envelope(obj.kv_hints).actions]
    assert kinds == ["kv.demote", "astraea.program"]


def orders(kv_hints) -> list[KvAction]:
    return intake.actions_of(SimpleNamespace(kv_hints=decode_kv_hints_envelope(kv_hints)))


def custom(form=lambda hints: hints, **hints) -> dict:
    return {"sampling_params": {"custom_params": {"astraea": form(hints)}}}


KV = [{"type": "kv.pin", "ttl_s": 30, "colour": "red"}, {"type": "kv.demote", "id": "turn-17", "tokens": 4096}]


def test_orders_in_kv_hints_reach_the_scheduler():
    obj = taken_in(kv_hints=envelope(action("kv.pin", ttl="5m"), action("kv.share", ttl="no"), action(program_id="p")))
    assert orders(obj.kv_hints) == [KvAction("0", "kv.pin", 300.0)]
    kinds = [a.action_type for a in decode_kv_hints_envelope(obj.kv_hints).actions]
    assert kinds == ["kv.pin", "kv.share", "astraea.program"]


@pytest.mark.parametrize(
    "fields",
    [
        custom(program_id="p", kv=KV),
        custom(json.dumps, program_id="p", kv=KV),
        dict(kv_hints=envelope(action(program_id="p", kv=KV))),
    ],
    ids=["custom_params", "custom_params as text", "kv_hints"],
)
def test_orders_listed_in_the_hints_become_actions(fields):
    before = intake.counts["ignored_keys"]
    obj = taken_in(**fields)
    assert orders(obj.kv_hints) == [KvAction("kv.0", "kv.pin", 30.0), KvAction("turn-17", "kv.demote", tokens=4096)]
    assert read(obj.kv_hints).program_id == "p" and intake.counts["ignored_keys"] == before


def test_listed_orders_do_not_survive_in_the_hints():
    *kv, ours = decode_kv_hints_envelope(taken_in(**custom(program_id="p", kv=KV)).kv_hints).actions
    assert ours.payload.keys() == {"program_id", "arrived", "identity"}
    assert [a.payload for a in kv] == [{"ttl_s": 30, "colour": "red"}, {"tokens": 4096}]


def test_listed_orders_follow_those_in_kv_hints():
    obj = taken_in(kv_hints=envelope(action("kv.retain")), **custom(program_id="p", kv=KV))
    assert [order.id for order in orders(obj.kv_hints)] == ["0", "kv.0", "turn-17"]


def test_the_items_of_a_batch_keep_their_own_orders():
    params = [{"custom_params": {"astraea": {"program_id": p, "kv": kv}}} for p, kv in (("p", KV), ("q", None))]
    obj = taken_in(text=["a", "b"], sampling_params=params)
    assert [len(orders(e)) for e in obj.kv_hints] == [2, 0]


def test_orders_that_came_past_the_intake_are_none():
    assert orders(envelope(action("kv.pin", ttl_s=30), action(program_id="p"))) == []
    assert intake.actions_of(SimpleNamespace(kv_hints=None)) == []


RETAIN = KvAction("cache_control", "kv.retain", 3600.0)
CACHED = {"system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}


def test_cache_control_of_the_body_is_an_order_for_the_named_program():
    assert orders(taken_in(body=CACHED, headers={"x-dynamo-session-id": "p"}).kv_hints) == [RETAIN]


def test_cache_control_comes_beside_as_many_orders_as_may_be():
    kv = [{"type": "kv.pin"}] * MOST_ACTIONS
    assert orders(taken_in(body=CACHED, **custom(program_id="p", kv=kv)).kv_hints)[MOST_ACTIONS:] == [RETAIN]


def test_cache_control_without_a_program_asks_for_nothing():
    assert orders(taken_in(body=CACHED).kv_hints) == []


def test_a_body_that_was_not_parsed_asks_for_nothing():
    assert orders(taken_in(session_id="p").kv_hints) == []


def test_without_an_http_request_hints_are_read_all_the_same():
    obj = GenerateReqInput(text="hello", **custom(program_id="p", kv=KV))
    intake.normalise(SimpleNamespace(server_args=SimpleNamespace(schedule_policy="astraea")), obj)
    assert len(orders(obj.kv_hints)) == 2


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
        (dict(kv_hints=envelope(action("kv.pin", ttl_s=-1))), "ttl_s of kv.pin '0'"),
        (dict(kv_hints=envelope(*[action("kv.pin")] * 17)), "more than 16 kv actions"),
        (custom(kv={"type": "kv.pin"}), "kv is an object; send a list"),
        (custom(kv=["kv.pin"]), r"kv\[0\] is a string; send an object"),
        (custom(kv=[{"ttl_s": 30}]), "type is null; send one of"),
        (custom(kv=[{"type": "kv.pinn"}]), "type is 'kv.pinn'; send one of"),
        (custom(kv=[{"type": "kv.pin", "id": 7}]), "the id of kv.pin"),
        (custom(kv=[{"type": "kv.retain", "ttl": "soon"}]), "ttl of kv.retain 'kv.0'"),
        (custom(kv=[{"type": "kv.retain", "tokens": 1.5}]), "tokens of kv.retain 'kv.0'"),
        (custom(kv=[{"type": "kv.pin"}] * 1000), "more than 16 kv actions"),
        (dict(text=["a", "b"], kv_hints=[envelope()] * 2, sampling_params=[{}] * 3), "lists of 2 and 3"),
        (dict(kv_hints=envelope(*[action("kv.pin")] * 9), **custom(kv=[{"type": "kv.pin"}] * 8)), "more than 16"),
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


def test_hints_do_not_travel_twice():
    custom = {"astraea": {"program_id": "p"}, "mine": 1}
    obj = taken_in(sampling_params={"temperature": 0, "custom_params": custom})
    assert obj.sampling_params == {"temperature": 0, "custom_params": {"mine": 1}}
    assert custom.keys() == {"astraea", "mine"}  # the client's own object is not touched


def test_a_tenant_is_who_the_operators_header_says(monkeypatch):
    def tenant(**sent):
        req = SimpleNamespace(kv_hints=taken_in(**sent).kv_hints)
        return intake.hints_of(req, ())[2]

    kv_hints = envelope(action(program_id="p", tenant="mallory"))
    assert tenant(kv_hints=kv_hints, headers={"x-tenant": "acme"}) == ""
    monkeypatch.setenv("ASTRAEA_TENANT_HEADER", "x-tenant")
    assert tenant(kv_hints=kv_hints, headers={"x-tenant": "acme"}) == "acme"
    assert tenant(kv_hints=kv_hints) == ""


def test_headers_that_can_only_be_asked_for_as_over_grpc_are_read():
    request = SimpleNamespace(headers=SimpleNamespace(get={"x-session-id": "p"}.get))
    obj = GenerateReqInput(text="hello", sampling_params={})
    intake.normalise(SimpleNamespace(server_args=SimpleNamespace(schedule_policy="astraea")), obj, request)
    assert read(obj.kv_hints).program_id == "p"


def test_an_owner_and_offered_tools_are_ours_to_say():
    said = envelope(action(program_id="p", owner="mallory", identity="x", tools=["rm"], forced=True))
    assert read(taken_in(kv_hints=said).kv_hints) == Hints("p")
