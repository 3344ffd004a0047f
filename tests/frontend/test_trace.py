"""What `structure_of` says of programs. Their line numbers are counted from the function's first line, as +1."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from astraea_sglang.errors import HintError
from astraea_sglang.frontend import sgl
from astraea_sglang.structure import parse

EXAMPLES = Path(__file__).parents[2] / "examples"
SEEN: list[str] = []


def never(*_: Any) -> str:
    raise AssertionError("a tool ran, though its program was only traced")


def traced(body: Any, **arguments: Any) -> sgl.Traced:
    return sgl.structure_of(sgl.function(body), **arguments)


def lines(body: Any, **arguments: Any) -> list[str]:
    """The structure, a node a line: `id kind(number) -> next`, of a loop `id loop(most) body -> next`."""
    known = traced(body, **arguments)
    assert known.structure is not None, known.why
    first = body.__code__.co_firstlineno
    told = []
    for node in known.structure.payload()["nodes"]:
        number = {"segment": "max_tokens", "tool": "expected_s", "loop": "most"}.get(node["kind"], "")
        words = [node["id"], f"{node['kind']}({node.get(number, '')})", *([node["body"]] if "body" in node else [])]
        told.append(" ".join([*words, "->", *node["next"]]))
    for line in range(first + 40, first, -1):
        told = [text.replace(f" {line}", f"+{line - first}") for text in told]
    return told


def why(body: Any, **arguments: Any) -> str:
    """The reason for which a program is unknown."""
    known = traced(body, **arguments)
    assert known.structure is None and known.why is not None and not known.nodes
    first = body.__code__.co_firstlineno
    return known.why.replace("line ", "line +", 1) if not known.why.startswith("line ") else _near(known.why, first)


def _near(text: str, first: int) -> str:
    _, number, rest = text.split(" ", 2)
    return f"+{int(number.rstrip(':')) - first} {rest}"


def helper(s: Any, word: str) -> Any:
    s += word + sgl.gen("x", max_tokens=2)
    return s["x"]


# What can be told


def test_a_straight_line_is_its_generations_and_tools():
    def body(s):
        s += "Q" + sgl.gen("a", max_tokens=5) + sgl.tool("t", never, sgl.variable("a"), expects=2)
        s += sgl.gen("b") + sgl.gen(choices=["x", "y"])

    assert lines(body) == [
        "a segment(5) -> t",
        "t tool(2.0) -> b",
        "b segment(128) -> select+2",
        "select+2 segment(0) ->",
    ]


def test_a_branch_on_a_value_goes_both_ways():
    def body(s):
        s += sgl.gen("a", max_tokens=1)
        if s["a"] == "x":
            s += sgl.tool("t", never)
        elif "y" in s["a"]:
            return
        s += sgl.gen("b", max_tokens=2)

    assert lines(body) == ["a segment(1) -> b end t", "b segment(2) ->", "end join() ->", "t tool() -> b"]


def test_a_question_is_answered_the_same_twice_and_a_choice_is_one_of_its_choices():
    def body(s):
        s += sgl.gen("a", choices=["x", "y"])
        if s["a"] == "x":
            s += sgl.gen("x", max_tokens=1)
        if s["a"] == "y":
            s += sgl.gen("y", max_tokens=2)
        elif s["a"] != "x" or s["a"] == "z":
            s += sgl.gen("never")

    assert lines(body) == ["a segment(0) -> y x", "y segment(2) ->", "x segment(1) ->"]


def test_an_answer_is_remembered_where_nothing_else_tells_the_ways_apart():
    def body(s):
        s += sgl.gen("a", max_tokens=1)
        if s["a"] == "x":
            pass
        if s["a"] == "x":
            s += sgl.gen("b", max_tokens=2)

    assert lines(body) == ["a segment(1) -> end b", "end join() ->", "b segment(2) ->"]


def test_a_loop_with_a_break_on_a_value_is_a_loop_with_a_bound():
    def body(s):
        for _ in range(7):
            s += sgl.gen("a", max_tokens=1)
            if s["a"] == "stop":
                break
            s += sgl.tool("t", never)
        s += sgl.gen("b", max_tokens=2)

    assert lines(body) == [
        "loop+1 loop(7) a -> b",
        "a segment(1) -> t b",
        "b segment(2) ->",
        "t tool() -> loop+1",
    ]


def test_rounds_over_equal_items_are_told_apart():
    def body(s):
        for _ in ["", "", ""]:
            s += sgl.gen("a", max_tokens=1)
            if s["a"] == "stop":
                break

    assert lines(body) == ["loop+1 loop(3) a ->", "a segment(1) -> loop+1 end", "end join() ->"]


def test_two_ways_to_one_state_both_go_on_from_there():
    def body(s, n=1):
        s += sgl.gen("a", max_tokens=1)
        if s["a"] == "x":
            s += sgl.gen("b", max_tokens=2)
        else:
            s += sgl.gen("b", max_tokens=3)
        s["a"] = ""
        if n:
            s += sgl.gen("c", max_tokens=4)

    expected = ["a segment(1) -> b b.2", "b segment(3) -> c", "b.2 segment(2) -> c", "c segment(4) ->"]
    assert lines(body, n=1) == expected


def test_rounds_that_ask_for_nothing_do_not_count():
    def body(s, words):
        for i in range(9):
            if i % 3 == 0:
                s += sgl.gen("a", max_tokens=1)
        for i in range(9):
            if i == 4:
                s += sgl.gen("b", max_tokens=2)
        for word in words:
            s += word

    assert lines(body, words=["x", "y"]) == ["loop+1 loop(3) a -> b", "a segment(1) -> loop+1", "b segment(2) ->"]


def test_a_loop_in_a_loop():
    def body(s):
        for _ in range(2):
            for _ in range(3):
                s += sgl.gen("a", max_tokens=1)
                if s["a"] == "x":
                    continue
                s += sgl.gen("b", max_tokens=2)

    assert lines(body) == [
        "loop+1 loop(2) loop+2 ->",
        "loop+2 loop(3) a -> loop+1",
        "a segment(1) -> b loop+2",
        "b segment(2) -> loop+2",
    ]


def test_a_while_loop_with_a_count_is_bounded_by_it():
    def body(s):
        n = 0
        while n < 4 and s.text() != "done":
            s += sgl.gen("a", max_tokens=1)
            n += 1

    assert lines(body) == ["loop+2 loop(4) a ->", "a segment(1) -> loop+2"]


def test_forks_run_side_by_side_with_their_tools_and_join():
    def body(s):
        s += "x"
        forks = s.fork(2)
        forks += lambda i: str(i) + sgl.gen("a", max_tokens=1) + sgl.tool("t", never)
        s += sgl.gen("own", max_tokens=3)
        forks.join()
        s += " ".join(s["a"]) + sgl.gen("b", max_tokens=2)

    assert lines(body) == [
        "prefix segment(0) -> fork+2",
        "fork+2 fork() -> a a.2 own",
        "a segment(1) -> t",
        "a.2 segment(1) -> t.2",
        "own segment(3) -> join+5",
        "t tool() -> join+5",
        "t.2 tool() -> join+5",
        "join+5 join() -> b",
        "b segment(2) ->",
    ]


def test_a_fork_that_does_something_on_a_value_and_one_that_nobody_joins():
    def body(s):
        s += sgl.gen("a", max_tokens=1)
        forks = s.fork(2)
        if s["a"] == "x":
            forks[0].__iadd__(sgl.gen("b", max_tokens=2))
        forks[1].__iadd__(sgl.gen("c", max_tokens=3))

    assert lines(body) == [
        "a segment(1) -> prefix fork+2",
        "prefix segment(0) -> fork+2",
        "fork+2 fork() -> branch+2 c",
        "branch+2 join() -> end b",
        "end join() ->",
        "b segment(2) ->",
        "c segment(3) ->",
    ]


def test_a_copy_of_the_state_is_no_fork():
    def body(s):
        with s.copy() as aside:
            aside += sgl.gen("a", max_tokens=1)
        with s.user():
            s += sgl.gen("b", max_tokens=2)

    assert lines(body) == ["a segment(1) -> b", "b segment(2) ->"]


def test_parallel_tools_are_one_pause_as_long_as_the_slowest():
    def body(s):
        s += sgl.gen("a", max_tokens=1) + sgl.parallel(sgl.tool("u", never, expects=3), sgl.tool("t", never, expects=1))

    known = traced(body).structure
    assert lines(body) == ["a segment(1) -> t+u", "t+u tool(3.0) ->"]
    assert known is not None and known.start().tools == ("t+u",)


def test_functions_of_the_program_are_followed_and_each_call_is_a_node_of_its_own():
    def body(s):
        def ask(word: str) -> bool:
            return helper(s, word).strip().lower() in ("yes", "ja")

        if ask("one") and len(s["x"]) > 3:
            ask("two")

    assert lines(body) == ["x segment(2) -> end x.2", "end join() ->", "x.2 segment(2) ->"]


def test_texts_and_parsed_values_stay_unknown_and_are_asked_both_ways():
    def body(s, q):
        s += f"{q!r:>5}: %s" % q + sgl.gen("a", max_tokens=1)
        found = json.loads(s["a"].split("\n")[0])
        text = f"{found['n']}".upper()
        if int(found["n"]) > 3 or text == "NONE" or found.get("z") is None:
            s += text + sgl.gen("b", max_tokens=2)

    assert lines(body) == ["a segment(1) -> end b", "end join() ->", "b segment(2) ->"]


def test_a_tool_that_a_value_picks_from_a_dict_is_each_of_them():
    def body(s):
        tools = {"x": sgl.tool("t", never), "y": sgl.tool("u", never)}
        s += sgl.gen("a", choices=["x", "y"])
        s += tools[s["a"]]

    assert lines(body) == ["a segment(0) -> u t", "u tool() ->", "t tool() ->"]


def test_what_the_program_raises_itself_is_an_end():
    def body(s):
        s += sgl.gen("a", max_tokens=1)
        assert s["a"] != "x", "no good"
        if s["a"] == "y":
            raise RuntimeError("gives up")
        s += sgl.gen("b", max_tokens=2)

    assert lines(body) == ["a segment(1) -> b end", "b segment(2) ->", "end join() ->"]


def test_arguments_count_by_their_shape():
    def body(s, topics, rounds=2, mode="x"):
        for topic in topics:
            s += topic + sgl.gen("a", max_tokens=rounds)
        if mode == "deep":
            s += sgl.gen("b", max_tokens=9)

    three = traced(body, topics=["p", "q", "r"], rounds=4)
    assert three is traced(body, topics=list("abc"), rounds=4, mode="deep"), "as the texts do not matter"
    assert three.structure is not None and three.structure.start().most_tokens == 3 * 4 + 9
    assert why(body) == "+1 goes through a value, as often as that says"


def test_a_loop_of_thirty_rounds_with_three_ways_each_is_told():
    def body(s):
        for _ in range(30):
            s += sgl.gen("a", choices=["x", "y", "z"])
            if s["a"] == "x":
                break
            if s["a"] == "y":
                s += sgl.tool("t", never)
            else:
                s += sgl.gen("b", max_tokens=1)

    assert lines(body)[0] == "loop+1 loop(30) a ->"


def test_the_same_program_has_the_same_structure_in_every_process(tmp_path):
    import subprocess

    script = tmp_path / "program.py"
    script.write_text(
        "from astraea_sglang.frontend import sgl\n"
        "def body(s):\n"
        "    forks = s.fork(3)\n"
        "    for i, fork in enumerate(forks.states):\n"
        "        for name in 'abcdefgh'[:i + 4]:\n"
        "            fork += sgl.gen(name)\n"
        "            fork += sgl.tool('t' + name, len, 'x')\n"
        "    forks.join()\n"
        "    for _ in range(3):\n"
        "        s += sgl.gen('z')\n"
        "        if s['z'] == s['a'][0]:\n"
        "            s += sgl.gen('y')\n"
        "print(sgl.structure_of(sgl.function(body)).ref)\n"
    )
    refs = {
        subprocess.run(
            [sys.executable, str(script)], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(refs) == 1 and refs != {"None\n"}


# What cannot


def unbounded(s):
    s += sgl.gen("a")
    while s["a"] != "done":
        s += sgl.gen("a")


def until_it_says_so(s):
    while True:
        s += sgl.gen("a")
        if s["a"].startswith("done"):
            break


def counts_on_for_ever(s):
    n = 0
    while s.text() != "done":
        n += 1
        s += str(n) + sgl.gen("a")


def over_a_value(s):
    s += sgl.gen("a")
    for line in s["a"].splitlines():
        s += line + sgl.gen("b")


def a_values_times(s):
    s += sgl.gen("a")
    forks = s.fork(int(s["a"]))
    forks += sgl.gen("b")


def raises_on_symbols(s):
    s += sgl.gen("a")
    s += {"x": "y"}[s["a"]] + sgl.gen("b")


def tries(s):
    s += sgl.gen("a")
    try:
        n = int(s["a"])
    except ValueError:
        n = 0
    s += str(n) + sgl.gen("b")


def matches_a_type(s):
    s += sgl.gen("a")
    match s["a"]:
        case str():
            s += sgl.gen("b")


def too_many_ways(s):
    for i in range(12):
        s += sgl.gen(f"a{i}")
        if s[f"a{i}"] == "x":
            s += sgl.gen(f"b{i}")


def too_many_nodes(s):
    for i in range(260):
        s += sgl.gen(f"a{i}")


def forks_in_a_loop_without_a_join(s):
    for _ in range(2):
        forks = s.fork(2)
        forks += sgl.gen("a")


def forks_that_outlive_a_round(s):
    forks = s.fork(0)
    for i in range(2):
        if i == 0:
            forks = s.fork(2)
        forks += sgl.gen("a")


def hands_its_state_away(s):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        pool.submit(helper, s, "x")


class Asker:
    def ask(self, s):
        s += sgl.gen("a")


def hands_its_state_to_a_value(s):
    Asker().ask(s)


def changes_a_global(s):
    SEEN.append("x")
    s += sgl.gen("a")


def asks_for_nothing(s):
    s += sgl.tool("t", never)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (unbounded, "+3 comes round again as often as values say"),
        (until_it_says_so, "+3 comes round again as often as values say"),
        (counts_on_for_ever, "there are too many ways through it"),
        (over_a_value, "+2 goes through a value, as often as that says"),
        (a_values_times, "+2 forks as often as a value says"),
        (raises_on_symbols, "KeyError while values were not known"),
        (tries, "+3 uses a value within try, and it is not known what that raises"),
        (matches_a_type, "+2 compares a value in a way that is not traced"),
        (too_many_ways, "there are too many ways through it"),
        (too_many_nodes, "the structure has 262 nodes; send 1 to 256"),
        (forks_in_a_loop_without_a_join, "+2 forks again before the forks of the last time have joined"),
        (forks_that_outlive_a_round, "+4 makes forks that outlive that round of the loop"),
        (hands_its_state_away, "+3 enters a Symbol, which is not traced"),
        (hands_its_state_to_a_value, "+1 hands its state to a value, which is not traced"),
        (changes_a_global, "+1 changes what is kept outside the program"),
        (asks_for_nothing, "it asks the server for nothing"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_followed_is_unknown_with_the_reason(body, reason):
    assert why(body).startswith(reason)
    assert SEEN == []


def test_what_is_no_program_is_refused_with_what_to_type():
    with pytest.raises(HintError, match=r"write @sgl\.function above it"):
        sgl.structure_of(helper)


def test_a_program_without_source_is_unknown():
    namespace: dict[str, Any] = {}
    exec("def body(s): s += 'x'", namespace)
    assert why(namespace["body"]).startswith("its source cannot be read")


def test_nothing_around_a_program_happens_when_it_is_traced():
    def body(s):
        print("never", file=sys.stderr)
        Path(__file__).unlink()
        removed = list(map(os.remove, [__file__]))
        s += removed[0] + sgl.gen("a", max_tokens=1)
        s += other.run().text() + sgl.tool("t", never)

    other: Any = sgl.function(lambda s: never())
    assert lines(body) == ["a segment(1) -> t", "t tool() ->"]
    assert Path(__file__).exists()


# The examples


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_react_example_is_a_loop_of_five_rounds():
    known = sgl.structure_of(example("01_react").react).structure
    assert known is not None
    nodes = {node.id: node for node in known.nodes}
    loop = known.nodes[0]
    assert (loop.kind, loop.most, loop.body, loop.next) == ("loop", 5, "thought", ("answer",))
    assert nodes["thought"].next == ("action",)
    assert set(nodes["action"].next) == {"argument", "argument.2", "answer"}
    assert {nodes[nodes[name].next[0]].tool for name in ("argument", "argument.2")} == {"lookup", "calculate"}
    assert nodes["lookup"].next == nodes["calculate"].next == (loop.id,) and nodes["answer"].next == ()
    assert known.start().most_segments == 5 * 4 + 1 or known.start().most_segments == 5 * 3 + 1


def test_the_fan_out_example_is_a_fork_of_three_with_a_search_each():
    known = sgl.structure_of(example("02_fan_out").research).structure
    assert known is not None and parse(known.payload()) == known
    kinds = [(node.kind, len(node.next)) for node in known.nodes]
    assert kinds == [
        ("segment", 1),
        ("fork", 3),
        *[("segment", 1)] * 3,
        *[("tool", 1)] * 3,
        ("join", 1),
        ("segment", 0),
    ]
    assert known.start().segments == known.start().most_segments == 5
    assert known.start().tools == ("search",) and known.start().width == 3
