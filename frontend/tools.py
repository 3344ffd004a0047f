"""What may a model call, and what came of it? Plain functions as typed tools: pydantic reads and checks their types."""

import asyncio
import contextvars
import inspect
import math
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache, partial, wraps
from threading import Thread
from typing import Any, overload

from anyio import to_thread
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import to_json

from astraea_sglang.errors import AstraeaError, ConfigError

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # what OpenAI's API takes


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a tool call? `text` is for the model to read, `value` what the function returned.

    `error` says in one line why there is no value; None when all went well.
    """

    tool: str
    text: str
    value: Any = None
    error: str | None = None


def failed(tool: str, error: str) -> Result:
    """What came of a call that did not work out? An error text, for the model to do better."""
    return Result(tool, f"Error: {error}", error=error)


class Tool:
    """What can a model do with this function? What it is told of it, and how a call is run.

    `schema` is its item in the `tools` of a chat request. `expects` is how long a call takes, in seconds, if known.
    Calling the tool itself calls the plain function.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        name: str | None = None,
        expects: float | None = None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> None:
        self.fn = fn
        self.name = name or getattr(fn, "__name__", type(fn).__name__)
        if not NAME.fullmatch(self.name):
            raise ConfigError(f"tool {self.name!r}: give it 1 to 64 letters, digits, _ or -: tool(name='search')")
        if not inspect.isroutine(fn):
            raise ConfigError(f"tool {self.name!r} is a {type(fn).__name__}; give a function: wrap it in a def")
        check(self.name, expects, timeout, retries, ConfigError)
        self.expects, self.timeout, self.retries = expects, timeout, retries
        try:
            self._arguments = TypeAdapter(_arguments_of(fn))
            parameters = self._arguments.json_schema(schema_generator=_Untitled)
        except (PydanticUserError, NameError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            wanted = "annotate its parameters with types that pydantic knows"
            raise ConfigError(f"tool {self.name!r} has no JSON schema ({reason}); {wanted}") from None
        about = {"name": self.name, "description": inspect.getdoc(fn) or "", "parameters": parameters}
        self.schema = {"type": "function", "function": about}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Tool({self.name!r})"

    async def answer(self, arguments: str) -> Result:
        """What comes of a call with these arguments, a JSON text by a model? Raises nothing but cancellation."""
        try:
            args, kwargs = self._arguments.validate_json(arguments.strip() or "{}")
        except ValidationError as error:
            wrong = [": ".join([*map(str, each["loc"]), each["msg"]]) for each in error.errors()]
            return failed(self.name, f"invalid arguments: {'; '.join(wrong)}")
        except (Exception, SystemExit) as error:  # by a validator of the tool's own
            return failed(self.name, f"invalid arguments: {why(error)}")
        return await self.run(*args, **kwargs)

    async def run(self, *args: Any, **kwargs: Any) -> Result:
        """What comes of a call with these values? Tries `retries` times more. Raises nothing but cancellation.

        A plain function runs in a daemon thread, at its turn (an event loop's anyio limiter lets 40 run at once);
        `timeout` does not count the wait for that turn. A late one runs on, unheard, for as long as the process does.
        """
        result = await self._attempt(args, kwargs)
        for _ in range(self.retries):
            if result.error is None:
                break
            result = await self._attempt(args, kwargs)
        return result

    async def _attempt(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Result:
        call = partial(self.fn, *args, **kwargs)
        if inspect.iscoroutinefunction(self.fn):
            return await self._timed(call)
        turns, turn = to_thread.current_default_thread_limiter(), object()
        await turns.acquire_on_behalf_of(turn)
        return await self._timed(partial(_threaded, call, partial(turns.release_on_behalf_of, turn)))

    async def _timed(self, call: Callable[[], Awaitable[Any]]) -> Result:
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                value = await call()
                value = await value if inspect.isawaitable(value) else value
            return Result(self.name, _text(value), value)
        except (KeyboardInterrupt, GeneratorExit):  # neither is the tool's: Ctrl-C, and the end of this coroutine
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return failed(self.name, "was cancelled")  # from within, by the tool: the program goes on
        except BaseException as error:  # sys.exit() too, which argparse calls
            return failed(self.name, f"took longer than {self.timeout} s" if limit.expired() else why(error))


def check(name: str, expects: float | None, timeout: float | None, retries: int, error: type[AstraeaError]) -> None:
    """Can a tool be run like this? Raises `error` for what is no duration, no time to wait for it, or no count."""
    if expects is not None and not (math.isfinite(expects) and expects >= 0):
        raise error(f"tool {name!r}: expects={expects} is no duration; give seconds, such as expects=0.5")
    if timeout is not None and not (math.isfinite(timeout) and timeout > 0):
        raise error(f"tool {name!r}: timeout={timeout} is no time to wait; give seconds above 0, such as timeout=5")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise error(f"tool {name!r}: retries={retries!r} is no count; give a whole number, such as retries=2")


def why(failure: BaseException) -> str:
    """What is a model told of this? One line."""
    return f"{type(failure).__name__}: {failure}"


def in_thread(fn: Callable[..., Any], *args: Any) -> Future[Any]:
    """What will `fn` return? It runs in a thread that the end of the process does not wait for, unlike a pool's."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()  # from now on it cannot be cancelled: it runs to its end in any case

    def run() -> None:
        try:
            future.set_result(fn(*args))
        except BaseException as failure:
            future.set_exception(failure)

    context = contextvars.copy_context()  # says whose child a program is that the tool runs
    Thread(target=context.run, args=(run,), name="astraea tool", daemon=True).start()
    return future


@overload
def tool(fn: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *, name: str | None = None, expects: float | None = None, timeout: float | None = None, retries: int = 0
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(fn: Callable[..., Any] | None = None, /, **how: Any) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Which tool is this function, sync or async? Its docstring and annotations are what the model learns of it.

    `expects` and `timeout` are seconds of one call, `retries` counts further tries when it raises or is late. Raises
    ConfigError for a function that cannot be offered to a model.
    """
    if fn is None:
        return partial(Tool, **how)
    return fn if isinstance(fn, Tool) else _plain(fn)


@lru_cache(maxsize=1024)  # for programs by the thousand
def _plain(fn: Callable[..., Any]) -> Tool:
    return Tool(fn)


async def _threaded(call: Callable[[], Any], returned: Callable[[], None]) -> Any:
    """What it returns, perhaps something to await: by then others have their turn, since it may wait for them."""
    try:
        return await asyncio.wrap_future(in_thread(_passed_on, call))
    finally:
        returned()


def _passed_on(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (StopIteration, KeyboardInterrupt) as failure:  # a task cannot get the one, and takes the other for Ctrl-C
        raise RuntimeError(why(failure)) from failure


def _arguments_of(fn: Callable[..., Any]) -> Any:
    """A function with the parameters of `fn`, which returns what it is given: pydantic calls what it has checked."""

    @wraps(fn)
    def given(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    given.__annotations__ = {name: kind for name, kind in given.__annotations__.items() if name != "return"}
    return given


class _Untitled(GenerateJsonSchema):
    """Titles only repeat the names, and the model would read them all."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _text(value: object) -> str:
    text = value if isinstance(value, str) else to_json(value, fallback=str).decode()
    return text.encode("utf-8", "replace").decode()  # a lone surrogate, as in a file's name, cannot be sent
