import ast
import re
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeGuard
from unittest.mock import patch

import pytest

from astraea_sglang.errors import ServerError
from astraea_sglang.frontend import sgl
from astraea_sglang.frontend.lang import interpreter
from astraea_sglang.frontend.trace_run import Run
from astraea_sglang.hints import parse
from astraea_sglang.structure import digest
from tests.conftest import ADMIN_KEY

EXAMPLES = Path(__file__).parents[2] / "examples"


# What requests say of their program


def asks_in_every_way(s):
    s += "Q " + sgl.gen("q") + sgl.gen("pick", choices=["a", "abc"])
    s.sync()  # SGLang sends the prefix for the forks only if it sees text by now
    forks = s.fork(2)
    forks += sgl.gen("part")
    forks.join()
    s += str(s["part"])


@pytest.mark.parametrize("stream", [False, True])
def test_every_request_says_which_program_it_belongs_to(stand_in, stream):
    state = stand_in.run(asks_in_every_way, stream=stream)
    assert "".join(state.text_iter()) == "Q okabc['ok', 'ok']"
    # gen; select: its prompt, then its choices; the prefix that the forks share; a gen in each fork
    assert sorted(hints["segment"] for hints in stand_in.hints()) == [0, 1, 1, 2, 3, 4]
    assert {body["session_id"] for body in stand_in.generated} == {hints["program_id"] for hints in stand_in.hints()}
    assert {hints["program_class"] for hints in stand_in.hints()} == {"asks_in_every_way"}


def test_the_servers_own_parser_takes_the_hints_whole(stand_in):
    def body(s):
        s += sgl.gen("q") + sgl.tool("search", str.upper, "x", expects=0.5)

    stand_in.run(body).sync()
    hints = parse(stand_in.hints()[0])
    assert (hints.program_class, hints.segment, hints.next_tool, hints.expected_tool_s) == ("body", 0, "search", 0.5)
    assert (hints.ignored, hints.clipped, hints.final, hints.parent_id) == ((), (), False, None)
    envelope = stand_in.generated[0]["kv_hints"]
    assert envelope["protocol_version"] == "1" and isinstance(envelope["message_id"], str)
    assert {k: v for k, v in envelope["actions"][0].items() if k != "payload"} == {
        "action_id": "0", "action_type": "astraea.program", "action_version": "1",
    }  # fmt: skip


def test_programs_at_the_same_time_never_share_an_identity_and_their_forks_always_do(stand_in):
    def body(s, mark):
        s += mark + sgl.gen("a")
        s.sync()
        forks = s.fork(4)
        for fork in forks.states:
            for _ in range(3):
                fork += sgl.gen("b") + sgl.tool("t", str.upper, "x")
        forks.join()
        s += sgl.gen("c")

    endpoint = sgl.AstraeaEndpoint(stand_in.url)
    threads = [Thread(target=stand_in.run, args=(body,), kwargs={"backend": endpoint, "mark": mark}) for mark in "XY"]
    for thread in threads:
        thread.start()
    assert stand_in.eventually(lambda: len(stand_in.events) == 2)
    seen: dict[str, set[str]] = {}
    segments: dict[str, list[int]] = {}
    for request, hints in zip(stand_in.generated, stand_in.hints(), strict=True):
        assert request["session_id"] == hints["program_id"]
        seen.setdefault(request["text"][0], set()).add(hints["program_id"])
        segments.setdefault(hints["program_id"], []).append(hints["segment"])
    assert [len(ids) for ids in seen.values()] == [1, 1] and len(segments) == 2
    assert [sorted(numbers) for numbers in segments.values()] == [list(range(15))] * 2


def test_a_program_that_a_tool_or_a_body_runs_names_its_parent(stand_in):
    def child(s):
        s += sgl.gen("x")

    def body(s):
        s += sgl.gen("a") + sgl.tool("child", lambda: stand_in.run(child).text())
        s.sync()
        list(stand_in.run(child, stream=True).text_iter())

    stand_in.run(body).sync()
    parent, in_tool, in_body = stand_in.hints()
    assert "parent_id" not in parent
    assert in_tool["parent_id"] == in_body["parent_id"] == parent["program_id"]
    assert len({parent["program_id"], in_tool["program_id"], in_body["program_id"]}) == 3


@pytest.mark.parametrize("how", [{}, {"num_threads": 1}, {"generator_style": True}], ids=str)
def test_the_programs_of_a_batch_that_a_tool_runs_name_its_program_as_their_parent(stand_in, how):
    def child(s, mark):
        s += mark + sgl.gen("x")

    def many() -> str:
        batch: Any = sgl.function(child)
        states = batch.run_batch([{"mark": mark} for mark in "XYZ"], backend=sgl.AstraeaEndpoint(stand_in.url), **how)
        return " ".join(state.text() for state in states)

    def body(s):
        s += sgl.gen("a") + sgl.tool("many", many)

    assert stand_in.run(body)["many"] == "Xok Yok Zok"
    parent, *children = stand_in.hints()
    assert [child.get("parent_id") for child in children] == [parent["program_id"]] * 3


# What a program may do


def loops_and_forks(s):
    s += "Q"
    for _ in range(3):
        s += sgl.gen("q") + sgl.tool("t", str.upper, "x")
        if s["q"] == "stop":
            break
    forks = s.fork(2)
    forks += sgl.gen("part")
    forks.join()
    s += sgl.gen("a")


def test_the_first_request_declares_what_the_program_may_do_and_the_others_refer_to_it(stand_in):
    stand_in.run(loops_and_forks).sync()
    known = sgl.structure_of(sgl.function(loops_and_forks))
    first, *others = map(parse, stand_in.hints())
    assert known.structure is not None and first.structure == known.structure and first.structure_ref is None
    assert {(hints.structure, hints.structure_ref) for hints in others} == {(None, digest(known.structure))}


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"use_thread": False}], ids=str)
def test_every_request_says_at_which_node_it_is_in_a_fork_too(stand_in, options):
    state = stand_in.run(loops_and_forks, **options)
    assert "".join(state.text_iter()) == "QokXokXokXok"
    nodes = [hints["node"] for hints in stand_in.hints()]
    assert nodes[:4] == ["q", "q", "q", "prefix"] and sorted(nodes[4:6]) == ["part", "part.2"] and nodes[6:] == ["a"]


def test_a_node_is_known_where_its_statement_takes_several_lines(stand_in):
    class Asker:
        def ask(self, s, word):
            s += (
                word
                + sgl.gen("q")
            )  # fmt: skip

    asker = Asker()

    def body(s):
        with s.user():
            asker.ask(
                s,
                "x",
            )
        (asker
            .ask(s,
                 word="y"))  # fmt: skip
        for words in (("x", "y"),):
            asker.ask(*(
                s, words[0]))  # fmt: skip
        with s.copy() as aside:
            aside += sgl.user(
                sgl.gen("a")
            )  # fmt: skip

    stand_in.run(body).sync()
    assert [hints["node"] for hints in stand_in.hints()] == ["q", "q.2", "q.3", "a"]


def test_both_requests_of_a_select_are_at_its_node(stand_in):
    def body(s):
        s += "?" + sgl.gen("pick", choices=["a", "b"])

    stand_in.run(body).sync()
    assert [hints["node"] for hints in stand_in.hints()] == ["pick", "pick"]


def test_a_node_that_the_trace_did_not_see_is_not_told(stand_in):
    switch: list[str] = []

    def body(s):
        s += sgl.gen("a")
        if switch:  # set once the program has been traced
            s += sgl.gen("b")

    stand_in.run(body).sync()
    switch.append("on")
    program: Any = sgl.function(body)
    program.run(backend=sgl.AstraeaEndpoint(stand_in.url)).sync()
    assert [hints.get("node") for hints in stand_in.hints()] == ["a", "a", None]


@pytest.mark.parametrize("trace", [True, False])
def test_a_program_that_is_not_known_ahead_declares_nothing_and_runs(stand_in, trace):
    def body(s):
        s += sgl.gen("a")
        while trace and s["a"] != "ok":
            s += sgl.gen("a")

    state = stand_in.run(body, backend=sgl.AstraeaEndpoint(stand_in.url, trace=trace))
    assert state.text() == "ok"
    assert not stand_in.hints()[0].keys() & {"structure", "structure_ref", "node"}
    assert trace is (sgl.structure_of(sgl.function(body)).structure is None)


def test_a_program_is_traced_once_for_many_runs(stand_in):
    def body(s, q):
        s += q + sgl.gen("a")

    program: Any = sgl.function(body)
    endpoint = sgl.AstraeaEndpoint(stand_in.url)
    with patch.object(Run, "go", autospec=True, side_effect=Run.go) as traced:
        for q in ("x", "y"):
            program.run(q, backend=endpoint).sync()
        program.run(q="z", backend=endpoint).sync()
    assert traced.call_count == 1
    assert {hints["node"] for hints in stand_in.hints()} == {"a"}


# The end of a program


def test_the_end_is_told_once_after_the_last_request(stand_in):
    def body(s):
        s += sgl.gen("a")

    stand_in.gate.clear()
    states = [stand_in.run(body), stand_in.run(body)]
    assert stand_in.eventually(lambda: len(stand_in.generated) == 2)
    assert stand_in.events == []
    stand_in.gate.set()
    assert [state.text() for state in states] == ["ok", "ok"]
    assert stand_in.eventually(lambda: len(stand_in.events) == 2)
    ends = [{"event": "program_end", "program_id": hints["program_id"]} for hints in stand_in.hints()]
    assert sorted(stand_in.events, key=str) == sorted(ends, key=str)


def test_the_end_is_told_when_the_body_raises_and_its_forks_have_done_their_work(stand_in):
    forks = []

    def body(s):
        s += "x"
        forks.extend(s.fork(2).states)
        stand_in.gate.clear()
        for fork in forks:
            fork += sgl.gen("a")
        raise RuntimeError("gives up")

    with pytest.raises(RuntimeError, match="gives up"):
        stand_in.run(body)
    assert stand_in.events == []
    stand_in.gate.set()
    assert stand_in.eventually(lambda: len(stand_in.events) == 1)
    assert [fork.text() for fork in forks] == ["xok", "xok"]


def test_a_state_that_fails_does_not_end_the_program_of_its_forks(stand_in):
    def body(s):
        s += sgl.tool("upper", str.upper, sgl.variable("nothing"))
        assert stand_in.eventually(lambda: s.error() is not None)
        forks = s.fork(2)
        forks += sgl.gen("a")
        forks.join()
        assert stand_in.events == []

    with pytest.warns(UserWarning, match="Error in stream_executor"):
        stand_in.run(body)
    assert stand_in.eventually(lambda: len(stand_in.events) == 1)


@pytest.mark.parametrize("use_thread", [True, False])
def test_a_plain_server_runs_programs_and_is_told_of_no_second_end(plain_stand_in, use_thread):
    endpoint = sgl.AstraeaEndpoint(plain_stand_in.url)
    for _ in range(3):
        state = plain_stand_in.run(asks_in_every_way, backend=endpoint, use_thread=use_thread)
        assert state.text() == "Q okabc['ok', 'ok']"
        assert plain_stand_in.eventually(lambda: not endpoint._takes_events)
    assert len(plain_stand_in.events) == 1


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (405, 1), (501, 1), (500, 2)])
def test_only_a_server_without_events_is_not_told_again(stand_in, status, asked, monkeypatch):
    def body(s):
        s += sgl.gen("a")

    answer = stand_in.answer
    monkeypatch.setattr(
        stand_in, "answer", lambda path, body: (status if "events" in path else 200, answer(path, body)[1])
    )
    endpoint = sgl.AstraeaEndpoint(stand_in.url)
    for _ in range(2):
        stand_in.run(body, backend=endpoint, use_thread=False)
    assert len(stand_in.events) == asked


def test_a_server_that_is_slow_to_hear_of_the_end_is_not_waited_for(stand_in, monkeypatch):
    def body(s):
        s += sgl.gen("a")

    answer, hear = stand_in.answer, Event()
    monkeypatch.setattr(
        stand_in, "answer", lambda path, body: ("events" in path and hear.wait(10), answer(path, body))[1]
    )
    monkeypatch.setattr(sgl, "EVENT_S", 0.02)
    try:
        stand_in.run(body, use_thread=False)
        assert stand_in.events == []  # it has not been heard by now
    finally:
        hear.set()


def test_the_end_is_told_with_the_servers_key(stand_in, monkeypatch):
    def body(s):
        s += sgl.gen("a")

    endpoint = sgl.AstraeaEndpoint(stand_in.url, api_key="k")
    assert endpoint._events.headers["authorization"] == "Bearer k"
    stand_in.run(body, backend=endpoint)
    assert stand_in.eventually(lambda: len(stand_in.events) == 1)


def test_a_program_that_asked_nothing_has_nothing_to_end(stand_in):
    def body(s):
        s += "x" + sgl.tool("t", str.upper, "y")

    stand_in.run(body, use_thread=False)
    assert stand_in.events == []


def test_what_sglang_offers_for_programs_is_offered_here_too():
    text = (Path(interpreter.__file__).parents[1] / "__init__.py").read_text()
    exported = next(ast.literal_eval(node.value) for node in ast.parse(text).body if is_all(node))
    needs_an_engine = {"Engine", "Runtime", "ServerArgs", "flush_cache", "get_server_info"}
    backends = {"Anthropic", "Crusoe", "LiteLLM", "OpenAI", "RuntimeEndpoint", "VertexAI"}
    rest = set(exported) - needs_an_engine - backends - {"__version__", "global_config"}
    assert rest <= set(sgl.__all__) and all(hasattr(sgl, name) for name in sgl.__all__)


def is_all(node: ast.stmt) -> TypeGuard[ast.Assign]:
    return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"


@pytest.mark.parametrize("method", ["token_length_normalized", "greedy_token_selection"])
def test_a_select_takes_the_ways_to_choose(stand_in, method):
    def body(s):
        s += sgl.select("pick", ["a", "abc"], choices_method=getattr(sgl, method))

    assert stand_in.run(body)["pick"] == "abc"


@pytest.mark.server  # slow set, for the parser imports torch
def test_reasoning_is_told_apart(stand_in):
    def body(s):
        s += sgl.assistant(sgl.separate_reasoning(sgl.gen("a"), model_type="deepseek-r1"))

    state = stand_in.run(body)
    assert (state["a_reasoning_content"], state["a"]) == ("ok", "")  # it has not stopped thinking


def test_a_missing_server_is_an_error_that_says_what_to_type():
    with pytest.raises(ServerError, match=r"no server answers at http://127\.0\.0\.1:9 .*; start one: astraea serve"):
        sgl.AstraeaEndpoint("http://127.0.0.1:9")


@pytest.mark.server
@pytest.mark.parametrize(
    ("example", "shows"),
    [
        ("01_react", r"Action: (Lookup|Calculate) .+\n.*Observation: \d.*\n(.*\n)+.*Answer: "),
        ("02_fan_out", r"(.*Lisbon(.*\n)+){3}.*Summary.*\n.*\w"),
    ],
)
def test_the_examples_run_on_a_real_server_which_knows_all_their_nodes(client, server_url, example, shows):
    def unknown() -> list[int]:
        told = client.get("/astraea/programs", headers={"Authorization": f"Bearer {ADMIN_KEY}"}).json()
        return [told["ranks"][0]["counts"].get(name, 0) for name in ("unknown_nodes", "unknown_structures")]

    before = unknown()
    command = [sys.executable, str(EXAMPLES / f"{example}.py"), server_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(shows, done.stdout) and "Error" not in done.stdout + done.stderr
    assert unknown() == before
