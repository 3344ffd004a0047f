"""What can a program do, told before it does anything? Its function, run with symbols for what is not known.

Every truth that depends on a value is decided both ways, in runs of their own. Runs that come to the same point with
the same future are one from there on. What is around a program is not touched: tools, other programs and all functions
that are not its own do not run, and count as values. What cannot be followed is unknown, never guessed.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from threading import Lock
from types import FrameType, FunctionType
from typing import Any

from astraea_sglang.errors import HintError
from astraea_sglang.frontend.lang import SglFunction
from astraea_sglang.frontend.run import Traced
from astraea_sglang.frontend.trace_graph import nodes_of
from astraea_sglang.frontend.trace_mark import mark
from astraea_sglang.frontend.trace_path import END, START
from astraea_sglang.frontend.trace_run import Run, Shared
from astraea_sglang.frontend.trace_state import TracedExecutor, TracedState
from astraea_sglang.frontend.trace_symbol import SCALARS, Untraceable
from astraea_sglang.structure import parse

__all__ = ["Traced", "structure_of", "traced_once"]

logger = logging.getLogger(__name__)
MAX_STEPS = 50_000  # calls, nodes, rounds and decisions of all runs together: about a second
MAX_ITEMS = 1000  # of arguments, known by their shape
_lock = Lock()

UNKNOWN = ("unknown",)  # the shape of an argument of which nothing is known


class _Seen(BaseException):
    """From here on another run has shown, or will show, all that there is."""


def structure_of(function: Any, max_new_tokens: int | None = 128, **arguments: Any) -> Traced:
    """What can the program do, for every text? The structure the server is told, or in `why` the reason there is none.

    Of an argument, its numbers and the lengths of its lists count, as does that it is None; texts do not, and what is
    left out is not known. What is around the function, such as globals, counts as it is when first asked for.
    `max_new_tokens` is as for `function.run`: what a generation without a limit of its own gets, in tokens. Raises
    HintError for what is no `@sgl.function`.
    """
    if not isinstance(function, SglFunction):
        raise HintError(f"{function!r} is no program; write @sgl.function above it")
    return traced_once(function, (), arguments, max_new_tokens)


def traced_once(
    function: SglFunction, args: Sequence[Any], kwargs: Mapping[str, Any], max_new_tokens: int | None
) -> Traced:
    """The same for a call of the program's function. Remembers those asked for last, and never raises."""
    try:
        names = list(inspect.signature(function.func).parameters)[1:]
        given = {**dict(zip(names, args, strict=False)), **kwargs, **function.bind_arguments}
        shapes = tuple((name, _shape(given[name]) if name in given else UNKNOWN) for name in names)
        with _lock:
            return _traced(function.func, shapes, max_new_tokens)
    except Exception as error:
        logger.debug("tracing failed", exc_info=True)
        return Traced(function.func.__code__, why=f"{type(error).__name__}: {error}")


@lru_cache(maxsize=256)
def _traced(fn: FunctionType, shapes: tuple[tuple[str, Any], ...], limit: int | None) -> Traced:
    try:
        if not inspect.isfunction(fn) or hasattr(fn, "__wrapped__") or inspect.isgeneratorfunction(fn):
            raise Untraceable(f"{fn!r} is not a plain function")
        shared = Shared(limit, MAX_STEPS)
        _explore(shared, fn, shapes)
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
                raise _Seen
            seen.add((here, came))
            marks[here] = len(run.taken)

        run.at_point = at_point
        state = TracedState(TracedExecutor(run, (), START))  # pyright: ignore[reportArgumentType]
        try:
            run.go(state, {name: _value(run, shape) for name, shape in shapes})
            for executor in list(run.states.values()):
                executor.timeline.end(END)
        except _Seen:
            pass
        for i in range(len(answers), len(run.taken)):
            passed = tuple(here for here, taken in marks.items() if taken <= i)
            todo.append(((*run.taken[:i], not run.taken[i]), passed))


def _shape(value: Any, room: int = MAX_ITEMS) -> Any:
    """What of an argument counts? A number is itself, a list that of its items; a text is one of those not known."""
    if value is None or isinstance(value, bool | int | float):
        return "known", type(value).__name__, value
    if isinstance(value, list | tuple) and len(value) <= room:
        return type(value).__name__, *(_shape(item, room // max(1, len(value))) for item in value)
    if isinstance(value, dict) and len(value) <= room and all(isinstance(key, SCALARS) for key in value):
        return "dict", *((key, _shape(item, room // max(1, len(value)))) for key, item in value.items())
    return UNKNOWN


def _value(run: Run, shape: Any) -> Any:
    kind, *parts = shape
    if kind == "known":
        return parts[1]
    if kind == "dict":
        return {key: _value(run, part) for key, part in parts}
    if kind in ("list", "tuple"):
        items = [_value(run, part) for part in parts]
        return items if kind == "list" else tuple(items)
    return run.fresh()
