import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.toolcalls import MOST_KEPT, MOST_RUNNING, ToolCalls, joined, parts


def calling(*tools: str) -> ToolCalls:
    calls = ToolCalls()
    calls.expect(tools)
    return calls


def test_what_an_output_calls_runs_until_each_is_over():
    calls = calling("search", "search", "add")
    assert [bool(calls.finish(None, tool)) for tool in ("search", "add", "search", "search")] == [True] * 3 + [False]
    assert calls.names() == [] and calls.called == ["search", "search", "add"]


def test_a_start_confirms_a_call_that_the_output_announced():
    calls = calling("search")
    assert calls.start("1", "search", 5.0) and calls.names() == ["search"] and calls.called == ["search"]
    call = calls.finish("1", None)
    assert call is not None and call.since == 5.0 and not calls.names()


def test_a_start_that_nothing_announced_is_one_more():
    calls = calling("search")
    assert calls.start("1", "add", 0.0) and calls.names() == ["search", "add"]


def test_an_event_that_comes_twice_changes_nothing():
    calls = calling()
    assert calls.start("1", "add", 0.0) and not calls.start("1", "add", 1.0)
    assert calls.finish("1", None) and not calls.finish("1", None)


def test_the_next_pause_begins_anew():
    calls = calling("search")
    calls.expect(["add"])
    assert calls.names() == ["add"] and calls.called == ["search", "add"]


def test_names_of_tools_that_run_at_once_do_not_depend_on_their_order():
    assert joined(["b", "a"]) == joined(["a", "b"]) == "a+b" and parts("a+b") == ["a", "b"] and parts("a") == ["a"]
    assert len(joined(["x" * 100] * 3)) == 128


EVENTS = st.lists(
    st.tuples(st.sampled_from(["start", "finish", "expect"]), st.sampled_from("abc"), st.sampled_from("xy"))
)


@given(EVENTS)
def test_events_in_any_order_leave_whole_calls(events):
    calls = ToolCalls()
    for kind, id, tool in events:
        before = len(calls.running)
        if kind == "start":
            started = calls.start(id, tool, 1.0)
            assert len(calls.running) - before in ((0, 1) if started else (0,))
        elif kind == "finish":
            over = calls.finish(id, tool)
            assert len(calls.running) == before - (over is not None)
        else:
            calls.expect([tool])
            assert calls.names() == [tool]


@pytest.mark.parametrize("most", [MOST_RUNNING])
def test_memory_is_bounded_whatever_a_harness_sends(most):
    calls = ToolCalls()
    for i in range(10_000):
        calls.start(str(i), "t", 0.0)
    assert len(calls.running) == most and len(calls.called) == MOST_KEPT
