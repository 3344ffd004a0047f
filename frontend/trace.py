"""What can a program do, told before it does anything? Its function, run with symbols for what is not known.

Every truth that depends on a value is decided both ways, in runs of their own. Runs that come to the same point with
the same future are one from there on. What is around a program is not touched: tools, other programs and all functions
that are not its own do not run, and count as values. What cannot be followed is unknown, never guessed.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from threading import Lock, local
from types import FrameType, FunctionType
from typing import Any

from astraea_sglang.errors import HintError
from astraea_sglang.frontend.lang import SglFunction
from astraea_sglang.frontend.run import Traced
from astraea_sglang.frontend.trace_graph import nodes_of
from astraea_sglang.frontend.trace_mark import mark
from astraea_sglang.frontend.trace_path import END, START
from astraea_sglang.frontend.trace_run import Run, Seen, Shared
from astraea_sglang.frontend.trace_state import TracedExecutor, TracedState
from astraea_sglang.frontend.trace_symbol import SCALARS, Untraceable
from astraea_sglang.structure import parse

__all__ = ["Traced", "structure_of", "traced_once"]

logger = logging.getLogger(__name__)
MAX_STEPS = 120_000  # calls, nodes, rounds, decisions and values looked at, of all runs together: about 0.3 s of CPU
MAX_ITEMS = 1000  # of arguments, known by their shape
PATIENCE = 0.1  # seconds for the program that is traced in another thread; after that, this one goes without
_lock = Lock()
_busy = local()

UNKNOWN = ("unknown",)  # the shape of an argument of which nothing is known
TEXT = ("text",)


def structure_of(function: Any, max_new_tokens: int | None = 128, **arguments: Any) -> Traced:
    """What can the program do, for every text? The structure the server is told, or in `why` the reason there is none.

    Of an argument, its numbers and the lengths of its lists count, as does that it is None; texts do not, and what is
    left out is not known. What is around the function, such as globals, counts as it is when first asked for.
    Takes at most about 0.3 seconds, then the program is unknown. `max_new_tokens` is as for `function.run`: what a
    generation without a limit of its own gets, in tokens. Raises HintError for what is no `@sgl.function`.
    """
    if type(function) is not SglFunction:
        raise HintError(f"{function!r} is no program; write @sgl.function above it")
    return traced_once(function, (), arguments, max_new_tokens)


def traced_once(
    function: SglFunction, args: Sequence[Any], kwargs: Mapping[str, Any], max_new_tokens: int | None
) -> Traced:
    """The same for a call of the program's function. Remembers those asked for last, and never raises.

    Without an answer, also in `why`, for a call within a trace, or while another thread traces for long.
    """
    try:
        if getattr(_busy, "tracing", False):
            return Traced(function.func.__code__, why="it is asked for while another program is traced")
        shapes = _shapes(function.func, args, {**kwargs, **function.bind_arguments})
        if not _lock.acquire(timeout=PATIENCE):
            return Traced(function.func.__code__, why="another program is being traced in another thread")
        _busy.tracing = True
        try:
            return _traced(function.func, shapes, max_new_tokens)
        finally:
            _busy.tracing = False
            _lock.release()
    except Exception as error:
        logger.debug("tracing failed", exc_info=True)
        return Traced(function.func.__code__, why=f"{type(error).__name__}: {error}")


@lru_cache(maxsize=256)
def _traced(fn: FunctionType, shapes: tuple[tuple[str, Any], ...], limit: int | None) -> Traced:
    try:
        if type(fn) is not FunctionType or hasattr(fn, "__wrapped__") or inspect.isgeneratorfunction(fn):
            raise Untraceable(f"a {type(fn).__name__} that is wrapped, or yields, is not a plain function")
        if fn.__code__.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS) or fn.__code__.co_posonlyargcount > 1:
            raise Untraceable("it takes arguments that have no names")
        shared = Shared(limit, MAX_STEPS)
        _explore(shared, fn, shapes)
        if shared.failed:
            raise shared.failed
        nodes, names = nodes_of(shared.ways)
        return Traced(fn.__code__, parse({"nodes": nodes}), nodes=names)
    except (Untraceable, HintError) as reason:
        why = str(reason)
    except OSError as error:
        why = f"its source cannot be read: {error}"
    except Exception as error:
        logger.debug("%s cannot be traced", fn, exc_info=True)
        why = f"{type(error).__name__} while values were not known: {error}"
    return Traced(fn.__code__, why=" ".join(why.split()))


def _explore(shared: Shared, fn: FunctionType, shapes: Sequence[tuple[str, Any]]) -> None:
    seen: set[Any] = set()
    todo: list[tuple[tuple[bool, ...], tuple[Any, ...]]] = [((), ())]  # what to answer first, and where that comes by
    while todo:
        answers, before = todo.pop()
        run = Run(shared, fn, answers)
        marks = dict.fromkeys(before, 0)  # and how much was decided by then

        def at_point(frame: FrameType, run: Run = run, marks: dict[Any, int] = marks) -> None:
            if len(run.taken) < len(run.answers):
                return
            here, came = mark(run, frame)
            if here in marks:
                raise Untraceable(f"line {frame.f_lineno} comes round again as often as values say")
            if (here, came) in seen:
                run.over = True
                raise Seen
            seen.add((here, came))
            marks[here] = len(run.taken)

        run.at_point = at_point
        state = TracedState(TracedExecutor(run, (), START))  # pyright: ignore[reportArgumentType]
        with suppress(Seen):
            run.go(state, {name: _value(run, shape) for name, shape in shapes})
        if shared.failed:
            return
        for executor in [] if run.over else list(run.states.values()):
            executor.timeline.end(END)
        for i in range(len(answers), len(run.taken)):
            passed = tuple(here for here, taken in marks.items() if taken <= i)
            todo.append(((*run.taken[:i], not run.taken[i]), passed))


def _shapes(fn: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Of each parameter after the state: what counts of its argument, or of its default."""
    signature = inspect.signature(fn)
    bound = signature.bind_partial(None, *args, **kwargs)
    bound.apply_defaults()
    return tuple((name, _shape(bound.arguments.get(name, UNKNOWN))) for name in list(signature.parameters)[1:])


def _shape(value: Any, room: int = MAX_ITEMS) -> Any:
    """What of an argument counts? A number is itself, a list that of its items; a text is one of those not known."""
    kind = type(value)
    if value is UNKNOWN or kind is str:
        return UNKNOWN if value is UNKNOWN else TEXT
    if kind in (type(None), bool, int, float):
        return "known", kind.__name__, value
    if kind in (list, tuple) and len(value) <= room:
        return kind.__name__, *(_shape(item, room // max(1, len(value))) for item in value)
    if kind is dict and len(value) <= room and all(type(key) in SCALARS for key in value):
        return "dict", *((key, _shape(item, room // max(1, len(value)))) for key, item in value.items())
    return UNKNOWN


def _value(run: Run, shape: Any) -> Any:
    kind, *parts = shape
    if kind == "known":
        return parts[1]
    if kind == "dict":
        return run.made({key: _value(run, part) for key, part in parts})
    if kind in ("list", "tuple"):
        items = [_value(run, part) for part in parts]
        return run.made(items) if kind == "list" else tuple(items)
    return run.fresh(text=kind == "text")
