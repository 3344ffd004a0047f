"""How much longer will a tool take that has run for so long? From the last times of its (program class, tool)."""

from bisect import bisect_right, insort
from collections import deque
from itertools import islice
from typing import Any

MEMORY = 64  # calls
ENOUGH = 3  # calls, before history counts
MAX_TOOLS = 4096


class _Calls:
    """The last calls of one tool, seconds: in order of their end, and sorted."""

    __slots__ = ("last", "sorted")

    def __init__(self) -> None:
        self.last: deque[float] = deque()
        self.sorted: list[float] = []

    def add(self, seconds: float) -> None:
        if len(self.last) == MEMORY:
            del self.sorted[bisect_right(self.sorted, self.last.popleft()) - 1]
        self.last.append(seconds)
        insort(self.sorted, seconds)


class ToolTimes:
    """Tool times of the MAX_TOOLS tools seen last. Sound for heavy tails: what has lasted is expected to last."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str], _Calls] = {}

    def observe(self, program_class: str, tool: str, seconds: float) -> None:
        """A call took `seconds`."""
        calls = self._calls.pop((program_class, tool), None) or _Calls()
        calls.add(seconds)
        self._calls[program_class, tool] = calls
        if len(self._calls) > MAX_TOOLS:
            del self._calls[next(iter(self._calls))]

    def median(self, program_class: str, tool: str, elapsed: float) -> float | None:
        """What is the median of the remaining seconds, given `elapsed`? None without enough history.

        Infinite for a call that outlasts all of history.
        """
        calls = self._calls.get((program_class, tool))
        if calls is None or len(calls.last) < ENOUGH:
            return None
        first = bisect_right(calls.sorted, elapsed)
        longer = len(calls.sorted) - first
        if not longer:
            return float("inf")
        middle = calls.sorted[first + longer // 2]
        if not longer % 2:
            middle = (calls.sorted[first + longer // 2 - 1] + middle) / 2
        return middle - elapsed

    def mean(self, program_class: str, tool: str, elapsed: float) -> float | None:
        """What is the mean of the remaining seconds, given `elapsed`? None without enough history.

        A call that outlasts all of history is expected to take as long again, as under a Pareto tail.
        """
        calls = self._calls.get((program_class, tool))
        if calls is None or len(calls.last) < ENOUGH:
            return None
        first = bisect_right(calls.sorted, elapsed)
        longer = len(calls.sorted) - first
        return sum(islice(calls.sorted, first, None)) / longer - elapsed if longer else elapsed

    def ttl(self, program_class: str, tool: str, benefit: float) -> float:
        """For how many seconds does it pay to wait for the tool? argmax over t of P(time <= t) * `benefit` - t, or 0.

        `benefit` is what a return in time saves, seconds (Continuum, arXiv 2511.02230). Without enough history it is
        the answer: to wait as long as it saves costs at most twice the best.
        """
        calls = self._calls.get((program_class, tool))
        if calls is None or len(calls.last) < ENOUGH:
            return benefit
        times, share = calls.sorted, benefit / len(calls.sorted)
        worth, best = max((share * (i + 1) - seconds, seconds) for i, seconds in enumerate(times))
        return best if worth > 0 else 0.0

    def dump(self) -> list[Any]:
        """Everything learned, JSON-ready: what `load` reads back."""
        return [[*key, list(calls.last)] for key, calls in self._calls.items()]

    def load(self, dumped: Any) -> None:
        """Take what `dump` gave. Raises ValueError when it has another form; then nothing is taken."""
        tools = ToolTimes()
        for program_class, tool, seconds in dumped:
            for value in seconds:
                if not (isinstance(program_class, str) and isinstance(tool, str) and 0 <= value < float("inf")):
                    raise ValueError(f"tool times of {program_class!r}, {tool!r} hold {value!r}")
                tools.observe(program_class, tool, float(value))
        self._calls = tools._calls
