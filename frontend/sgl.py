"""SGLang's frontend language with tool calls, telling the server which program each request belongs to.

Takes the place of `import sglang as sgl`, and does without the engine (and torch) that comes with it:

    from astraea_sglang.frontend import sgl

    @sgl.function
    def agent(s, question):
        s += question + sgl.gen("query", stop="\\n") + sgl.tool("search", search, sgl.variable("query"), expects=0.5)

    agent.run(question="...", backend=sgl.AstraeaEndpoint("http://127.0.0.1:30000"))
"""

import logging
import ssl
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import httpx

from astraea_sglang.errors import ServerError
from astraea_sglang.frontend.executor import ProgramExecutor, current_run
from astraea_sglang.frontend.executor_tools import parallel, refuse_on_the_loop, tool, variable
from astraea_sglang.frontend.lang import (
    RuntimeEndpoint,
    StreamExecutor,
    assistant,
    assistant_begin,
    assistant_end,
    choices,
    function,
    gen,
    gen_int,
    gen_string,
    image,
    interpreter,
    select,
    separate_reasoning,
    set_default_backend,
    system,
    system_begin,
    system_end,
    user,
    user_begin,
    user_end,
    video,
)
from astraea_sglang.frontend.run import ProgramRun, Traced
from astraea_sglang.frontend.trace import structure_of, traced_once
from astraea_sglang.frontend.wire import EVENT_S, NO_SUCH_ROUTE

__all__ = [
    "AstraeaEndpoint",
    "Traced",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "greedy_token_selection",
    "image",
    "parallel",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "structure_of",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "tool",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
    "variable",
    "video",
]

if __name__ != "astraea_sglang.frontend.sgl":
    raise ImportError(f"{__name__} would hook into SGLang a second time; import astraea_sglang.frontend.sgl")

logger = logging.getLogger(__name__)

greedy_token_selection = choices.greedy_token_selection
token_length_normalized = choices.token_length_normalized
unconditional_likelihood_normalized = choices.unconditional_likelihood_normalized


class AstraeaEndpoint(RuntimeEndpoint):
    """An SGLang server that is told with every request which program it belongs to, and when that program ends.

    Any SGLang server will do: one without astraea ignores what it is told. `cache_prefix` tells nothing: `run_batch`
    sends it before any of its programs exists. With `trace` it is also told what each program may do, where that can be
    known ahead: see `structure_of`. Raises ServerError when no server answers at `base_url`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | None = None,
        chat_template_name: str | None = None,
        *,
        trace: bool = True,
    ) -> None:
        self.trace = trace
        self._takes_events = True
        try:
            super().__init__(base_url.rstrip("/"), api_key, verify, chat_template_name)
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise ServerError(f"no server answers at {base_url} ({reason}); start one: astraea serve") from None
        self.support_concate_and_append = False  # the server has lost that route; a join then appends the texts
        key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._events = httpx.Client(verify=ssl.create_default_context(cafile=verify), headers=key)

    def _add_images(self, s: StreamExecutor, data: dict[str, Any]) -> None:
        # Not about images: the one step that all requests of a state share, with the body at hand and nothing sent yet.
        super()._add_images(s, data)
        if isinstance(s, ProgramExecutor) and s.program:
            # A select sends the bare prompt first, and its choices at once: the tool comes after those.
            prefix = data["sampling_params"]["max_new_tokens"] == 0 and "return_logprob" not in data
            data.update(s.program.fields(s.segment, None if prefix else s.pause, s.node))

    def traced(self, program: Any, args: Any, kwargs: Any, executor: ProgramExecutor) -> Traced | None:
        """What is the server told of a program that is about to run? None if nothing can be said of it ahead."""
        if not self.trace or executor.num_api_spec_tokens is not None:
            return None
        traced = traced_once(program, args, kwargs, executor.default_sampling_para.max_new_tokens)
        return traced if traced.structure else None

    def end_of_program(self, program: ProgramRun) -> None:
        """Tell the server that `program` is over, if it has seen it. Advisory: waits 5 s at most, and never raises."""
        if not self._takes_events or program.next_segment() == 0:  # it has asked for none before
            return
        event = {"event": "program_end", "program_id": program.id}
        try:
            answer = self._events.post(f"{self.base_url}/astraea/events", json=event, timeout=EVENT_S)
        except Exception as error:
            logger.debug("the end of program %s was not told: %r", program.id, error)
            return
        if answer.status_code in NO_SUCH_ROUTE:
            self._takes_events = False


def _run_internal(state: Any, program: Any, func_args: Any, func_kwargs: Any, sync: bool) -> None:
    """Run a program's function, as SGLang does, as one ProgramRun; its parent is the program that calls it."""
    executor = state.stream_executor
    backend = executor.backend
    traced, on_end = None, lambda run: None
    if isinstance(backend, AstraeaEndpoint):
        traced, on_end = backend.traced(program, func_args, func_kwargs, executor), backend.end_of_program
    run = ProgramRun(program.func.__name__, executor.caller, on_end, traced)
    executor.enter(run)
    token = current_run.set(run)
    try:
        refuse_on_the_loop(run.name)
        _sglang_run_internal(state, program, func_args, func_kwargs, sync)
    finally:
        current_run.reset(token)
        run.returned()


class _Pool(ThreadPoolExecutor):
    """The threads of a batch, which know the program whose tool runs it: the parent of all in it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(copy_context().run, fn, *args, **kwargs)


# SGLang looks up these three names for every run; other backends see no difference, but can have tools.
_sglang_run_internal = interpreter.run_internal
interpreter.run_internal = _run_internal
interpreter.StreamExecutor = ProgramExecutor
interpreter.ThreadPoolExecutor = _Pool
