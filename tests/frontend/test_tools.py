import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field

from astraea_sglang.errors import ConfigError
from astraea_sglang.frontend.tools import Result, Tool, tool

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["to", "x", "how"]), inner),
)


class Point(BaseModel):
    x: int
    y: int = 0


def search(query: str, limit: Annotated[int, Field(ge=1, description="how many")] = 3) -> str:
    """Find pages."""
    return f"{query} x{limit}"


async def move(to: Point, how: Literal["fast", "slow"] = "fast", *, model_config: bool = False) -> dict[str, Any]:
    return {"at": to, "how": how}


def answer(fn: Callable[..., Any], arguments: str, **how: Any) -> Result:
    return asyncio.run(Tool(fn, **how).answer(arguments))


def failing(*, times: int, error: BaseException) -> Callable[[], str]:
    """A tool that raises so many times, then works."""
    left = iter(range(times))

    def flaky() -> str:
        if next(left, None) is not None:
            raise error
        return "worked"

    return flaky


def test_the_schema_comes_from_annotations_and_docstring():
    assert tool(search).schema == {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Find pages.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string"},
                    "limit": {"type": "integer", "minimum": 1, "default": 3, "description": "how many"},
                },
                "required": ["query"],
                "additionalProperties": False,
            },
        },
    }


def test_a_tool_is_still_the_plain_function():
    @tool(name="find", expects=0.5, timeout=5, retries=1)
    def search(query: str) -> str:
        return query.upper()

    assert search("x") == "X" and (search.name, search.expects, search.timeout, search.retries) == ("find", 0.5, 5, 1)
    assert tool(search) is search


@pytest.mark.parametrize(
    "fn, arguments, text",
    [
        (search, '{"query": "a", "limit": 2}', "a x2"),
        (search, '{"query": "a"}', "a x3"),
        (search, '{"query": "a", "limit": "2"}', "a x2"),
        (move, '{"to": {"x": 1}}', '{"at":{"x":1,"y":0},"how":"fast"}'),
        (lambda: None, "", "null"),
        (lambda: {1, 2} - {1}, " {} ", "[2]"),
        (lambda: move(Point(x=1)), "{}", '{"at":{"x":1,"y":0},"how":"fast"}'),
        (lambda: threading, "{}", f'"{threading}"'),
        (lambda: "caf\udce9", "{}", "caf?"),
    ],
)
def test_a_tool_gets_checked_values_and_its_result_becomes_text(fn, arguments, text):
    assert answer(fn, arguments, name="t").text == text


@pytest.mark.parametrize(
    "fn, arguments, error",
    [
        (search, "{}", "invalid arguments: query: Missing required argument"),
        (search, '{"query": 1, "limit": 0}', "invalid arguments: query: Input should be a valid string; limit: Input "),
        (search, '{"query": "a", "colour": 1}', "invalid arguments: colour: Unexpected keyword argument"),
        (search, '"Paris"', "invalid arguments: Arguments must be an array or an object"),
        (search, '{"query": ', "invalid arguments: Invalid JSON"),
        (move, '{"to": {"x": "west"}}', "invalid arguments: to: x: Input should be a valid integer"),
    ],
)
def test_a_call_that_is_not_valid_tells_the_model_what_is_wrong(fn, arguments, error):
    result = answer(fn, arguments)
    assert result.error and result.error.startswith(error)
    assert result.text == f"Error: {result.error}" and result.value is None


@given(st.one_of(st.text(), JSON.map(json.dumps)))
def test_whatever_a_model_sends_comes_to_a_result(arguments):
    assert isinstance(answer(move, arguments), Result)


def test_a_tool_that_raises_tells_the_model_why():
    result = answer(failing(times=1, error=OSError("disk full")), "{}")
    assert (result.text, result.error) == ("Error: OSError: disk full", "OSError: disk full")


def test_a_tool_that_raises_is_tried_again_as_often_as_it_says():
    assert answer(failing(times=2, error=OSError("disk full")), "{}", retries=2).text == "worked"
    assert answer(failing(times=2, error=OSError("disk full")), "{}", retries=1).error == "OSError: disk full"


@pytest.mark.parametrize("is_async", [True, False])
def test_a_tool_that_takes_too_long_tells_the_model_so(is_async):
    over = threading.Event()

    async def sleeps() -> None:
        await asyncio.sleep(60)

    def hangs() -> None:
        over.wait(60)

    async def timed() -> str | None:
        result = await Tool(sleeps if is_async else hangs, timeout=0.02).answer("{}")
        over.set()  # no sooner: nobody waits for the thread
        return result.error

    assert asyncio.run(timed()) == "took longer than 0.02 s"


async def gives_up() -> None:
    raise TimeoutError("the database did not answer")


async def cancels_itself() -> None:
    raise asyncio.CancelledError


async def exits() -> None:
    sys.exit("usage: find NAME")


@pytest.mark.parametrize(
    "fn, error", [(gives_up, "TimeoutError: the database did not answer"), (cancels_itself, "was cancelled")]
)
def test_a_tools_own_timeout_or_cancellation_is_an_error_like_any_other(fn, error):
    assert answer(fn, "{}", timeout=5).error == error


@pytest.mark.parametrize(
    "fn, error",
    [
        (exits, "SystemExit: usage: find NAME"),
        (lambda: sys.exit(2), "SystemExit: 2"),
        (lambda: exits(), "SystemExit: usage: find NAME"),
        (lambda: next(iter(())), "RuntimeError: StopIteration: "),
        (failing(times=1, error=asyncio.CancelledError()), "was cancelled"),
        (failing(times=1, error=BaseException("panic")), "BaseException: panic"),
        (failing(times=1, error=KeyboardInterrupt()), "RuntimeError: KeyboardInterrupt: "),
    ],
)
def test_a_tool_that_would_end_its_thread_or_the_process_is_only_an_error(fn, error):
    assert answer(fn, "{}", name="t").error == error


def test_a_validator_that_exits_is_an_error_of_the_arguments():
    def takes(word: Annotated[str, AfterValidator(sys.exit)]) -> None: ...

    assert answer(takes, '{"word": "x"}').error == "invalid arguments: SystemExit: x"


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
def test_what_is_not_the_tools_own_passes_through(error):
    async def hangs() -> None:
        await asyncio.sleep(60)

    running = Tool(hangs, retries=1).run()

    async def interrupted() -> None:
        running.send(None)
        with pytest.raises(error):
            running.throw(error)

    asyncio.run(interrupted())


def test_a_plain_function_lets_others_have_its_turn_while_what_it_returned_is_awaited():
    inner = Tool(lambda: "in", name="inner")

    async def outer() -> str:
        return (await inner.run()).text

    async def nested() -> list[Result]:
        to_thread.current_default_thread_limiter().total_tokens = 2
        calls = (Tool(lambda: outer(), name="outer", timeout=5).run() for _ in range(4))
        return await asyncio.gather(*calls)

    assert [result.text for result in asyncio.run(nested())] == ["in"] * 4


def test_a_tool_that_was_given_up_does_not_hold_the_end_of_the_process():
    code = """
import asyncio, time
from astraea_sglang.frontend.tools import Tool
print(asyncio.run(Tool(lambda: time.sleep(30), name="t", timeout=0.02).run()).text)
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "Error: took longer than 0.02 s\n", done.stderr
    assert time.monotonic() - began < 25


def test_waiting_for_a_thread_does_not_use_up_the_timeout():
    async def second_of_two() -> Result:
        to_thread.current_default_thread_limiter().total_tokens = 1
        over = threading.Event()
        first = asyncio.create_task(Tool(over.wait, name="first").run())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.15, over.set)
        result = await Tool(lambda: "rested", name="second", timeout=0.1).run()
        await first
        return result

    assert asyncio.run(second_of_two()).text == "rested"


def test_a_plain_function_does_not_stop_the_event_loop():
    over = threading.Event()

    async def both() -> bool:
        blocked = asyncio.create_task(Tool(over.wait, name="blocked").run(5))
        await asyncio.sleep(0.01)
        over.set()
        return (await blocked).value

    assert asyncio.run(both())


class Callable_:
    def __call__(self) -> None: ...


def undefined(x: "Nothing") -> None: ...  # noqa: F821  # pyright: ignore[reportUndefinedVariable]


def unknown(x: threading.Thread) -> None: ...


@pytest.mark.parametrize(
    "fn, how, words",
    [
        (lambda: 1, {}, "'<lambda>': give it 1 to 64 letters"),
        (search, {"name": "two words"}, "'two words': give it 1 to 64 letters"),
        (Callable_(), {}, "wrap it in a def"),
        (undefined, {}, "'Nothing'"),
        (unknown, {}, "annotate its parameters"),
        (search, {"expects": -1}, "give seconds, such as expects=0.5"),
        (search, {"expects": float("nan")}, "give seconds, such as expects=0.5"),
        (search, {"timeout": 0}, "give seconds above 0, such as timeout=5"),
        (search, {"retries": -1}, "give a whole number, such as retries=2"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_with_the_fix(fn, how, words):
    with pytest.raises(ConfigError, match=words):
        tool(**how)(fn)
