"""Programs over HTTP: how they appear, move, end and are reaped on a real server."""

import threading
import time
from collections.abc import Callable

import httpx
import pytest

from astraea_sglang.structure import digest
from tests.conftest import ADMIN_KEY

pytestmark = pytest.mark.server
GREEDY = {"temperature": 0, "max_new_tokens": 4}


def state(client: httpx.Client) -> dict:
    reply = client.get("/astraea/programs", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
    assert reply.status_code == 200
    return reply.json()


def row(client: httpx.Client, program: str) -> dict | None:
    return next((p for p in state(client)["ranks"][0]["programs"] if p["id"] == program), None)


def finished(client: httpx.Client, program: str) -> dict | None:
    return next((p for p in state(client)["ranks"][0]["finished"] if p["id"] == program), None)


def eventually(client: httpx.Client, see: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not see():
        assert time.monotonic() < deadline, state(client)
        time.sleep(0.05)


def hinted(program: str, **payload) -> dict:
    about = {"action_id": "0", "action_type": "astraea.program", "action_version": "1"}
    actions = [{**about, "payload": {"program_id": program, **payload}}]
    return {"protocol_version": "1", "message_id": "m", "actions": actions}


def generate(client: httpx.Client, prompt: str = "One two three", **body) -> httpx.Response:
    params = GREEDY | body.pop("sampling_params", {})
    return client.post("/generate", json={"text": prompt, "sampling_params": params, **body})


def in_background(url: str, **body) -> threading.Thread:
    def work() -> None:
        with httpx.Client(base_url=url, timeout=120) as own:
            generate(own, **body)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


LONG = {"sampling_params": {"max_new_tokens": 60, "ignore_eos": True}}


def test_a_program_moves_through_every_state(client, server_url):
    blockers = [in_background(server_url, session_id=f"blocker-{i}", **LONG) for i in range(2)]  # the server runs two
    eventually(client, lambda: all((row(client, f"blocker-{i}") or {}).get("state") == "RUNNING" for i in range(2)))
    first = in_background(server_url, kv_hints=hinted("moving", program_class="react", next_tool="search"), **LONG)
    eventually(client, lambda: (row(client, "moving") or {}).get("state") == "READY")
    eventually(client, lambda: (row(client, "moving") or {}).get("state") == "RUNNING")
    first.join()
    paused = row(client, "moving")
    assert paused and (paused["state"], paused["next_tool"], paused["segments"]) == ("TOOL_WAIT", "search", 1)
    assert paused["wait_s"] > 0 and paused["attained_tokens"] >= 60 and paused["class"] == "react"
    generate(client, kv_hints=hinted("moving", final=True))
    done = finished(client, "moving")
    assert row(client, "moving") is None and done and done["why"] == "final" and done["segments"] == 2
    assert done["jct"] > done["wait"] > 0
    for blocker in blockers:
        blocker.join()


def order_of_ends(client: httpx.Client, url: str, requests: dict[str, dict]) -> list[str]:
    """In which order are these requests answered, by program, that come in this order to a server that is busy?"""
    order: list[str] = []

    def ask(name: str, body: dict) -> None:
        with httpx.Client(base_url=url, timeout=120) as own:
            generate(own, session_id=name, **body)
            order.append(name)

    blockers = [in_background(url, session_id=f"full-{i}", **LONG) for i in range(2)]
    eventually(client, lambda: all((row(client, f"full-{i}") or {}).get("state") == "RUNNING" for i in range(2)))
    waiting = []
    for name, body in requests.items():
        waiting.append(threading.Thread(target=ask, args=(name, body)))
        waiting[-1].start()
        eventually(client, lambda name=name: (row(client, name) or {}).get("state") == "READY")
    for thread in (*blockers, *waiting):
        thread.join()
    return order


def tokens(count: int) -> dict:
    return {"sampling_params": {"max_new_tokens": count, "ignore_eos": True}}


def test_a_short_segment_overtakes_a_long_one_in_the_real_queue(client, server_url):
    requests = {"long-1": tokens(100), "long-2": tokens(100), "short": tokens(1)}
    assert order_of_ends(client, server_url, requests)[0] == "short"


def test_a_users_priority_goes_before_shorter_work_and_none_at_all_comes_last(client, server_url):
    requests = {
        "plain": tokens(40),
        "low": {"priority": 1, **tokens(40)},
        "high": {"priority": 9, **tokens(60)},
        "higher": {"priority": 10, **tokens(80)},
    }
    assert order_of_ends(client, server_url, requests) == ["high", "higher", "low", "plain"]  # two run at a time


STRUCTURE = {
    "nodes": [
        {"id": "plan", "kind": "segment", "expected_tokens": 9, "next": ["search"]},
        {"id": "search", "kind": "tool", "expected_s": 0.1, "next": ["act"]},
        {"id": "act", "kind": "segment", "expected_tokens": 33},
    ]
}


def test_a_declared_structure_is_sent_once_and_then_referred_to(client):
    of = {"program_class": "planner", "node": "plan"}
    generate(client, kv_hints=hinted("declares", structure=STRUCTURE, **of))
    generate(client, kv_hints=hinted("refers", structure_ref=digest(STRUCTURE), **of))
    for program in ("declares", "refers"):
        seen = row(client, program) or {}
        assert (seen["node"], seen["segments_to_come"], seen["tokens_to_come"]) == ("plan@1", 1.0, 33)
    generate(client, kv_hints=hinted("refers", node="act", final=True))
    assert (finished(client, "refers") or {})["segments"] == 2


def test_flushing_the_cache_forgets_kv_not_history(client):
    def expected(program: str) -> float:
        generate(client, kv_hints=hinted(program, program_class="flushed"))
        return (row(client, program) or {})["segments_to_come"]

    for i in range(12):
        for final in (False, False, True):
            generate(client, kv_hints=hinted(f"flushed-{i}", program_class="flushed", final=final))
    assert expected("before") == pytest.approx(2, rel=0.2)
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    eventually(client, lambda: client.post("/flush_cache", headers=headers).status_code == 200)
    assert expected("after") == pytest.approx(2, rel=0.2)


def test_an_impossible_structure_is_a_400_that_says_what_to_send(client):
    circle = {"nodes": [{"id": "a", "kind": "segment", "next": ["b"]}, {"id": "b", "kind": "segment", "next": ["a"]}]}
    reply = generate(client, kv_hints=hinted("circular", structure=circle))
    assert reply.status_code == 400 and "put a loop node with `most` in it" in reply.text


def test_what_nobody_declared_is_ignored_and_counted(client):
    generate(client, kv_hints=hinted("lost", structure_ref="f00", node="plan"))
    assert state(client)["ranks"][0]["counts"]["unknown_structures"] >= 1


def test_a_program_whose_client_vanished_mid_tool_is_reaped(client):
    generate(client, kv_hints=hinted("vanished", next_tool="search"))
    assert (row(client, "vanished") or {})["state"] == "TOOL_WAIT"
    eventually(client, lambda: finished(client, "vanished"))  # the server reaps after 4 s
    assert (finished(client, "vanished") or {})["why"] == "reaped" and row(client, "vanished") is None


def test_a_program_whose_client_vanished_mid_generation_is_aborted_and_reaped(client, server_url):
    endless = GREEDY | {"max_new_tokens": 2000, "ignore_eos": True}
    body = {"text": "x", "session_id": "cut", "stream": True, "sampling_params": endless}
    with httpx.Client(base_url=server_url, timeout=60) as own, own.stream("POST", "/generate", json=body) as reply:
        next(reply.iter_lines())
        assert (row(client, "cut") or {})["state"] == "RUNNING"
    eventually(client, lambda: (row(client, "cut") or {}).get("state") == "TOOL_WAIT")
    eventually(client, lambda: finished(client, "cut"))
    assert (finished(client, "cut") or {})["why"] == "reaped"


def test_a_program_whose_client_vanished_in_the_queue_waits_no_longer(client, server_url):
    blockers = [in_background(server_url, session_id=f"ahead-{i}", **LONG) for i in range(2)]
    eventually(client, lambda: all((row(client, f"ahead-{i}") or {}).get("state") == "RUNNING" for i in range(2)))
    with httpx.Client(base_url=server_url, timeout=1) as impatient, pytest.raises(httpx.ReadTimeout):
        generate(impatient, session_id="queued")
    eventually(client, lambda: (row(client, "queued") or {}).get("state") == "TOOL_WAIT")
    for blocker in blockers:
        blocker.join()


def test_an_announced_end_ends_a_paused_program(client):
    generate(client, session_id="ended")
    assert client.post("/astraea/events", json={"event": "program_end", "program_id": "ended"}).json() == {
        "ended": True
    }
    assert (finished(client, "ended") or {})["why"] == "ended"
    assert client.post("/astraea/events", json={"event": "program_end", "program_id": "ended"}).json() == {
        "ended": False
    }


MESSAGES = [{"role": "user", "content": "Say hi"}]
REQUESTS = {
    "/generate": {"text": "Say hi", "sampling_params": GREEDY},
    "/v1/chat/completions": {"model": "m", "messages": MESSAGES, "max_tokens": 2},
    "/v1/completions": {"model": "m", "prompt": "Say hi", "max_tokens": 2},
}


def with_custom(path: str, value: object) -> dict:
    body, custom = REQUESTS[path], {"astraea": value}
    if path == "/generate":
        return {**body, "sampling_params": {**GREEDY, "custom_params": custom}}
    return {**body, "custom_params": custom}


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize("how", ["session_id", "custom_params", "header"])
def test_every_endpoint_takes_every_convention_it_can_carry(client, path, how):
    program = f"{how}{path}"
    body = {
        "session_id": REQUESTS[path] | {"session_id": program},
        "custom_params": with_custom(path, {"program_id": program}),
    }
    headers = {"X-Dynamo-Session-ID": program} if how == "header" else {}
    reply = client.post(path, json=body.get(how, REQUESTS[path]), headers=headers)
    assert reply.status_code == 200, reply.text
    assert (row(client, program) or {})["segments"] == 1


def test_session_final_ends_the_program(client):
    headers = {"X-Dynamo-Session-ID": "dyn"}
    client.post("/v1/chat/completions", json=REQUESTS["/v1/chat/completions"], headers=headers)
    client.post(
        "/v1/completions", json=REQUESTS["/v1/completions"], headers=headers | {"X-Dynamo-Session-Final": "true"}
    )
    assert (finished(client, "dyn") or {})["segments"] == 2


@pytest.mark.parametrize("path", REQUESTS)
def test_malformed_hints_are_a_400_that_names_the_field(client, path):
    for value, field in (({"program_id": 7}, "program_id"), ("{", "JSON"), ({"segment": -1}, "segment")):
        reply = client.post(path, json=with_custom(path, value))
        assert (reply.status_code, field in reply.text) == (400, True), reply.text


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize("session_id", [7, "x" * 300, ["a"]])
def test_a_session_id_that_is_no_sane_string_is_a_400_that_names_it(client, path, session_id):
    reply = client.post(path, json=REQUESTS[path] | {"session_id": session_id})
    assert (reply.status_code, "session_id" in reply.text) == (400, True), reply.text


def test_unknown_keys_are_ignored_and_counted(client):
    before = state(client)["requests"]["ignored_keys"]
    assert generate(client, kv_hints=hinted("odd", colour="red")).status_code == 200
    assert state(client)["requests"]["ignored_keys"] == before + 1


@pytest.mark.parametrize(
    "body", [{"event": "nonsense"}, {"event": "program_end"}, {"event": "program_end", "program_id": 5}, []]
)
def test_a_malformed_event_is_a_400(client, body):
    assert client.post("/astraea/events", json=body).status_code == 400


def test_the_programs_are_for_the_admin_like_sglangs_own_routes(client):
    wrong = {"Authorization": "Bearer wrong"}
    for path in ("/astraea/programs", "/flush_cache"):
        assert client.get(path).status_code == client.get(path, headers=wrong).status_code == 401
    assert generate(client).status_code == 200


def test_nothing_of_ours_failed_on_the_way(client, server):
    assert "faults" not in state(client)["ranks"][0]["counts"]
    assert "Traceback" not in server.log.read_text()
