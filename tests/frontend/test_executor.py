from threading import current_thread

import pytest

from astraea_sglang.errors import HintError
from astraea_sglang.frontend import sgl


def fail():
    raise ZeroDivisionError("no luck")


def test_a_tools_result_lands_in_the_text_and_in_its_variable(stand_in):
    def body(s):
        s += "Result: " + sgl.tool("search", lambda: ["a", 1], var="hits") + "."
        assert s["hits"] == "['a', 1]"

    state = stand_in.run(body)
    assert state.text() == "Result: ['a', 1]."
    assert state.error() is None


def test_a_tool_runs_between_two_generations_and_the_second_one_reads_its_result(stand_in):
    def body(s):
        s += "Q " + sgl.gen("q") + sgl.tool("thread", lambda: current_thread() is not main) + sgl.gen("a")

    main = current_thread()
    stand_in.run(body).sync()
    assert [request["text"] for request in stand_in.generated] == ["Q ", "Q okTrue"]


def test_an_argument_that_is_a_variable_is_read_when_the_tool_runs(stand_in):
    def body(s):
        s += sgl.gen("q") + " " + sgl.tool("upper", str.upper, sgl.variable("q"))

    assert stand_in.run(body)["upper"] == "OK"


def test_a_tool_that_reads_a_variable_nobody_sets_is_an_error_of_the_program(stand_in):
    def body(s):
        s += sgl.gen("q") + sgl.tool("upper", str.upper, sgl.variable("quary"))

    with pytest.warns(UserWarning, match="Error in stream_executor"):
        state = stand_in.run(body)
        assert stand_in.eventually(lambda: state.error() is not None)
    assert str(state.error()) == "tool 'upper' reads 'quary', which is not set by then; set are: q"


def test_a_failing_tool_becomes_text_for_the_model_and_a_recorded_error(stand_in):
    def body(s):
        s += sgl.tool("fail", fail) + " " + sgl.tool("upper", str.upper, "x") + sgl.gen("a")

    state = stand_in.run(body)
    assert state.text() == "Error: ZeroDivisionError: no luck Xok"
    assert state.get_meta_info("fail") == {"tool": "fail", "error": "ZeroDivisionError: no luck"}
    assert state.get_meta_info("upper")["error"] is None


@pytest.mark.parametrize("expects", [-1.0, float("nan"), float("inf")])
def test_a_duration_that_is_none_is_refused_where_it_is_written(expects):
    with pytest.raises(HintError, match=r"give seconds, such as expects=0\.5"):
        sgl.tool("search", str.upper, expects=expects)


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 129])
def test_a_tool_name_that_the_server_would_answer_400_is_refused_where_it_is_written(name):
    with pytest.raises(HintError, match="1 to 128 printable characters"):
        sgl.tool(name, str.upper)


def test_a_generation_tells_of_the_tools_before_the_next_one(stand_in):
    def body(s):
        s += (
            sgl.assistant(sgl.gen("a"))
            + " then "
            + sgl.tool("t", str.upper, "x", expects=1)
            + sgl.tool("u", fail, expects=2)
        )
        s += sgl.gen("b") + sgl.gen("c") + sgl.tool("v", fail, expects=1) + sgl.tool("w", fail) + sgl.gen("d")

    stand_in.run(body).sync()
    assert stand_in.pauses() == [("t", 3000.0), (None, None), ("v", None), (None, None)]


def test_a_tool_in_a_later_statement_is_known_when_it_is_queued_in_time(stand_in):
    def body(s):
        stand_in.gate.clear()
        s += sgl.gen("a")
        s += sgl.gen("b")
        s += sgl.tool("t", str.upper, "x")
        stand_in.gate.set()

    stand_in.run(body).sync()
    assert stand_in.pauses() == [(None, None), ("t", None)]


def test_a_select_tells_of_the_tool_with_its_choices_not_with_its_prompt(stand_in):
    def body(s):
        s += "?" + sgl.gen("pick", choices=["a", "b"]) + sgl.tool("t", str.upper, "x", expects=1)

    stand_in.run(body).sync()
    assert stand_in.pauses() == [(None, None), ("t", 1000.0)]


def test_joining_by_appending_keeps_the_texts_of_the_forks(stand_in):
    def body(s):
        s += "x"
        forks = s.fork(2)
        forks += lambda i: f"{i}" + sgl.gen("a")
        forks.join(mode="concate_and_append")

    state = stand_in.run(body)
    assert state.text() == "x0ok1ok"
    assert state.error() is None
