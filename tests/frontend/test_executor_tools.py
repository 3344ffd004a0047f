import asyncio
import sys
from threading import Barrier, Event, current_thread
from typing import Any

import pytest

from astraea_sglang.errors import HintError
from astraea_sglang.frontend import sgl


async def shout(word: str) -> str:
    await asyncio.sleep(0)
    return word.upper()


async def hang() -> None:
    await asyncio.sleep(60)


def failing(times: int) -> Any:
    left = [times]

    def attempt() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionError(f"{left[0]} to go")
        return "done"

    return attempt


# Async tools


def test_an_async_tool_is_awaited_and_says_what_it_returns(stand_in):
    def body(s):
        s += sgl.gen("q") + sgl.tool("shout", shout, sgl.variable("q"))

    assert stand_in.run(body)["shout"] == "OK"


def test_async_tools_of_all_states_share_one_loop_which_outlives_a_call(stand_in):
    loops = []

    async def note() -> None:
        loops.append((asyncio.get_running_loop(), current_thread().name))

    def body(s):
        forks = s.fork(2)
        forks += sgl.tool("note", note)
        forks.join()
        s += sgl.tool("again", note)

    stand_in.run(body).sync()
    assert len(loops) == 3 and len(set(loops)) == 1 and not loops[0][0].is_closed()


def test_a_program_that_an_async_tool_runs_in_a_thread_names_its_parent(stand_in):
    def child(s):
        s += sgl.gen("x")

    async def ask() -> str:
        return await asyncio.to_thread(lambda: stand_in.run(child).text())

    def body(s):
        s += sgl.gen("a") + sgl.tool("ask", ask)

    stand_in.run(body).sync()
    parent, inner = stand_in.hints()
    assert inner["parent_id"] == parent["program_id"]


def test_a_program_run_on_the_loop_itself_is_refused_with_what_to_type(stand_in):
    def child(s):
        s += sgl.gen("x")

    async def ask() -> str:
        return stand_in.run(child).text()

    def body(s):
        s += sgl.tool("ask", ask)

    wanted = (
        "Error: AstraeaError: an async tool runs the program 'child'; await asyncio.to_thread(child.run, ...) instead"
    )
    assert stand_in.run(body)["ask"] == wanted


# Tools that would end their thread


async def exits() -> None:
    sys.exit(2)


def raising(error: BaseException) -> Any:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("fn", "error"),
    [
        (lambda: sys.exit(2), "SystemExit: 2"),
        (exits, "RuntimeError: SystemExit: 2"),
        (raising(asyncio.CancelledError("no")), "CancelledError: no"),
        (raising(KeyboardInterrupt()), "KeyboardInterrupt: "),
        (raising(BaseException("panic")), "BaseException: panic"),
    ],
)
@pytest.mark.parametrize("timeout", [None, 5])
def test_a_tool_that_would_end_its_thread_tells_the_model_and_the_program_goes_on(stand_in, fn, error, timeout):
    def body(s):
        s += sgl.tool("quit", fn, timeout=timeout, retries=1) + " " + sgl.tool("shout", shout, "on") + sgl.gen("a")

    state = stand_in.run(body)
    assert stand_in.eventually(lambda: len(stand_in.events) == 1)  # or state.text() would wait for ever
    assert state.text() == f"Error: {error} ONok"


def test_ctrl_c_in_a_tool_that_runs_in_the_main_thread_is_not_the_tools(stand_in):
    def body(s):
        s += sgl.tool("quit", raising(KeyboardInterrupt()))

    with pytest.raises(KeyboardInterrupt):
        stand_in.run(body, use_thread=False)


# Timeouts and retries


def test_a_tool_that_takes_too_long_tells_the_model_so(stand_in):
    done = Event()

    def body(s):
        s += sgl.tool("wait", done.wait, timeout=0.05) + " " + sgl.tool("hang", hang, timeout=0.05)

    state = stand_in.run(body)
    done_text = "Error: TimeoutError: wait took longer than 0.05 s Error: TimeoutError: hang took longer than 0.05 s"
    assert state.text() == done_text
    assert state.get_meta_info("hang")["error"] == "TimeoutError: hang took longer than 0.05 s"
    done.set()


def test_an_async_tool_that_is_given_up_is_cancelled(stand_in):
    cancelled = Event()

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    def body(s):
        s += sgl.tool("wait", wait, timeout=0.02)

    stand_in.run(body).sync()
    assert cancelled.wait(5)


def test_a_tools_own_timeout_error_keeps_its_words(stand_in):
    def slow():
        raise TimeoutError("the database said so")

    def body(s):
        s += sgl.tool("slow", slow, timeout=5)

    assert stand_in.run(body)["slow"] == "Error: TimeoutError: the database said so"


@pytest.mark.parametrize(
    ("retries", "text"), [(0, "Error: ConnectionError: 1 to go"), (1, "Error: ConnectionError: 0 to go"), (2, "done")]
)
def test_a_tool_that_fails_is_tried_again_and_the_last_error_is_told(stand_in, retries, text):
    def body(s):
        s += sgl.tool("flaky", failing(2), retries=retries, timeout=5)

    state = stand_in.run(body)
    assert state["flaky"] == text
    assert state.get_meta_info("flaky")["error"] == (None if text == "done" else text.removeprefix("Error: "))


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"timeout": 0}, "give seconds above 0, such as timeout=5"),
        ({"timeout": float("nan")}, "give seconds above 0, such as timeout=5"),
        ({"retries": -1}, "give a whole number, such as retries=2"),
        ({"retries": 1.5}, "give a whole number, such as retries=2"),
        ({"retries": True}, "give a whole number, such as retries=2"),
    ],
)
def test_a_bad_timeout_or_count_is_refused_where_it_is_written(options, fix):
    with pytest.raises(HintError, match=fix):
        sgl.tool("search", str.upper, "x", **options)


# Parallel tools


def test_parallel_tools_run_at_once_and_their_texts_come_in_the_order_written(stand_in):
    together = Barrier(3)

    def meet(word: str) -> str:
        together.wait(5)
        return word

    async def meet_too(word: str) -> str:
        return await asyncio.to_thread(meet, word)

    def body(s):
        s += sgl.parallel(sgl.tool("a", meet, "1"), sgl.tool("b", meet_too, "2"), sgl.tool("a", meet, "3", var="c"))

    state = stand_in.run(body)
    assert state.text() == "123"
    assert (state["a"], state["b"], state["c"]) == ("1", "2", "3")


def test_one_parallel_tool_that_fails_does_not_harm_the_others(stand_in):
    def body(s):
        s += sgl.gen("q") + sgl.parallel(sgl.tool("a", failing(1)), sgl.tool("b", shout, sgl.variable("q")))

    state = stand_in.run(body)
    assert state["b"] == "OK" and state["a"] == "Error: ConnectionError: 0 to go"
    assert state.get_meta_info("a")["error"] == "ConnectionError: 0 to go" and state.get_meta_info("b")["error"] is None


def test_the_pause_for_parallel_tools_is_the_longest_of_theirs_and_names_all(stand_in):
    def body(s):
        u, t = sgl.tool("u", str, expects=2), sgl.tool("t", str, expects=1)
        s += sgl.gen("a") + sgl.parallel(u, t) + sgl.tool("v", str, expects=1) + sgl.gen("b") + sgl.parallel(u)
        s += sgl.gen("c") + sgl.parallel(u, sgl.tool("w", str)) + sgl.gen("d")

    stand_in.run(body).sync()
    assert stand_in.pauses() == [("t+u", 3000.0), ("u", 2000.0), ("u+w", None), (None, None)]


def test_parallel_tools_stream_like_others(stand_in):
    def body(s):
        s += sgl.gen("a") + sgl.parallel(sgl.tool("t", str, "x"), sgl.tool("u", str, "y"))

    state = stand_in.run(body, stream=True)
    assert "".join(state.text_iter("u")) == "y" and "".join(state.text_iter()) == "okxy"


@pytest.mark.parametrize(
    ("tools", "fix"),
    [
        ([], "not nothing; write parallel"),
        ([sgl.gen("a")], r"not SglGen; write parallel\(tool\('a', f\), tool\('b', g\)\)"),
        ([sgl.tool("a", str), sgl.tool("a", str)], r"two parallel tools set 'a'; .* as tool\(..., var='a2'\)"),
    ],
)
def test_what_cannot_run_in_parallel_is_refused_where_it_is_written(tools, fix):
    with pytest.raises(HintError, match=fix):
        sgl.parallel(*tools)
