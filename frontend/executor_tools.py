"""What does a tool say, and when is it given up? Tool calls as nodes of a program, and how one is run."""

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import wait as wait_for
from functools import cache
from threading import Lock, Thread, current_thread, main_thread
from typing import Any

from astraea_sglang.errors import AstraeaError, HintError
from astraea_sglang.frontend.lang import SglExpr, SglVariable
from astraea_sglang.frontend.tools import check, in_thread, why
from astraea_sglang.hints import NAME_LENGTH
from astraea_sglang.toolcalls import joined

logger = logging.getLogger(__name__)
LOOP_THREAD = "astraea async tools"
_lock = Lock()


class SglTool(SglExpr):
    """A tool call among the nodes of a program; built by `tool`."""

    def __init__(
        self,
        name: str,
        fn: Callable[..., object],
        args: tuple[object, ...],
        expects: float | None,
        var: str,
        timeout: float | None = None,
        retries: int = 0,
    ) -> None:
        super().__init__()
        self.name, self.fn, self.args, self.expects, self.var = name, fn, args, expects, var
        self.timeout, self.retries = timeout, retries

    @property
    def tools(self) -> "tuple[SglTool, ...]":
        return (self,)

    def __repr__(self) -> str:
        return f"Tool({self.name!r})"


class SglParallel(SglExpr):
    """Tool calls that run at once; built by `parallel`. Its name is what the server calls them together."""

    def __init__(self, tools: tuple[SglTool, ...]) -> None:
        super().__init__()
        self.tools = tools
        self.name = joined([tool.name for tool in tools])

    @property
    def expects(self) -> float | None:
        known = [tool.expects for tool in self.tools if tool.expects is not None]
        return max(known) if len(known) == len(self.tools) else None

    def __repr__(self) -> str:
        return f"Parallel({self.name!r})"


def tool(
    name: str,
    fn: Callable[..., object],
    *args: object,
    expects: float | None = None,
    var: str | None = None,
    timeout: float | None = None,
    retries: int = 0,
) -> SglTool:
    """What does `fn(*args)` say? Runs it when the state reaches this node, appends str(result), keeps that as s[var].

    `fn` may be async: all async tools of the process share one event loop in a thread of its own, so that a client such
    as httpx.AsyncClient can be kept from call to call. `expects` is how long the call takes, in seconds, if known;
    `var` is the tool's name unless given. An argument `variable("x")` is read when the node runs. An attempt that takes
    longer than `timeout` seconds has failed: an async one is cancelled, a plain one goes on unheeded. One that fails is
    tried again at once, `retries` times. If all fail, the text is `Error: ...`, for the model to read, and
    `s.get_meta_info(var)["error"]` says the same (None otherwise).

    The server is told of the tool with the generation before it, so the tool must be queued when that starts: true
    within one expression (`gen("q") + tool(...)`), never once the program has waited for the generation (`s["q"]`),
    and a matter of luck in between. Raises HintError for a name that is not 1 to 128 printable characters, or a bad
    `expects`, `timeout` or `retries`.
    """
    if not (1 <= len(name) <= NAME_LENGTH and name.isprintable()):
        raise HintError(f"tool name {name[:NAME_LENGTH]!r}: give it 1 to {NAME_LENGTH} printable characters")
    check(name, expects, timeout, retries, HintError)
    return SglTool(name, fn, args, expects, var or name, timeout, retries)


def parallel(*tools: SglTool) -> SglParallel:
    """What do these tools say, run at once? Appends their texts in the order written; each sets its own variable.

    The server is told of one pause: all names, sorted and joined by "+", for as long as the slowest is expected to
    take. Raises HintError when there is no tool, one is not built by `tool`, or two set the same variable.
    """
    if not tools or not all(isinstance(node, SglTool) for node in tools):
        kinds = ", ".join(type(node).__name__ for node in tools) or "nothing"
        raise HintError(f"parallel takes tool calls, not {kinds}; write parallel(tool('a', f), tool('b', g))")
    names = [node.var for node in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise HintError(f"two parallel tools set {twice!r}; give each a variable, as tool(..., var={twice + '2'!r})")
    return SglParallel(tools)


def variable(name: str) -> SglVariable:
    """What is s[name] when a tool runs? Stands for it in `tool(...)`, where s[name] would make the program wait."""
    return SglVariable(name, source=None)


def results(node: SglTool | SglParallel, arguments: Sequence[Sequence[object]]) -> list[tuple[str, str | None]]:
    """What does each tool of a node say, as (text, error or None)? `arguments` holds those of each."""
    if len(node.tools) == 1:
        return [_attempts(node.tools[0], arguments[0])]
    running = [in_thread(_attempts, call, args) for call, args in zip(node.tools, arguments, strict=True)]
    return [future.result() for future in running]


def refuse_on_the_loop(name: str) -> None:
    """Raises AstraeaError in the thread of the async tools: a program that is run there would wait for itself."""
    if current_thread().name == LOOP_THREAD:
        raise AstraeaError(f"an async tool runs the program {name!r}; await asyncio.to_thread({name}.run, ...) instead")


def _attempts(call: SglTool, args: Sequence[object]) -> tuple[str, str | None]:
    error = ""
    for _ in range(call.retries + 1):
        try:
            return str(_attempt(call, args)), None
        except BaseException as failure:  # sys.exit() too: without its state's thread the program would wait for ever
            if isinstance(failure, KeyboardInterrupt) and current_thread() is main_thread():
                raise
            logger.debug("tool %r failed", call.name, exc_info=True)
            error = why(failure)
    return f"Error: {error}", error


def _attempt(call: SglTool, args: Sequence[object]) -> object:
    if call.timeout is None or inspect.iscoroutinefunction(call.fn):
        value = call.fn(*args)
        if not inspect.isawaitable(value):
            return value
        future = asyncio.run_coroutine_threadsafe(_awaited(value), _loop())
    else:
        future = in_thread(_plain, call.fn, args)
    if wait_for([future], call.timeout).not_done:
        future.cancel()
        raise TimeoutError(f"{call.name} took longer than {call.timeout:g} s")
    return future.result()


async def _awaited(value: Any) -> object:
    try:
        return await value
    except (SystemExit, KeyboardInterrupt) as failure:  # would end the loop, for all async tools
        raise RuntimeError(why(failure)) from failure


def _plain(fn: Callable[..., object], args: Sequence[object]) -> object:
    value = fn(*args)
    return asyncio.run_coroutine_threadsafe(_awaited(value), _loop()).result() if inspect.isawaitable(value) else value


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        return _started_loop()


@cache
def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, name=LOOP_THREAD, daemon=True).start()
    return loop
