"""How long will a segment compute? Its output length from history, and the measured cost of a token on this engine."""

from bisect import bisect_right
from collections import deque
from statistics import median
from typing import NamedTuple

PRIOR_OUTPUT = 128.0  # tokens; InferCept's mean segment, until something has been seen
PRIOR_WEIGHT = 2.0  # a program's own mean counts in full only after a few segments
CLASS_MEMORY = 64  # segments over which a class mean forgets
MAX_CLASSES = 4096


class Costs(NamedTuple):
    """What does a token cost on this engine, in seconds? The defaults only stand until the first steps are measured."""

    prefill: float = 3e-5  # per uncached prompt token
    decode: float = 1e-2  # per generated token: the time of a decode step

    def work(self, uncached: int, output: float) -> float:
        """T_comp(S) = f_prefill(n_in) + n_gen * avg_decode_latency_per_token, seconds (Astraea 4.2); never zero.

        n_in are the prompt tokens the radix tree does not hold: the others cost nothing to compute.
        """
        return max(self.prefill * uncached + self.decode * output, 1e-9)


class StepCosts:
    """Measures `Costs` from finished steps: medians, so that a page fault or a compilation does not count."""

    WINDOW = 65  # steps

    def __init__(self) -> None:
        self._prefill: deque[tuple[int, float]] = deque(maxlen=self.WINDOW)
        self._decode: deque[float] = deque(maxlen=self.WINDOW)

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A step took `seconds` to prefill `tokens`."""
        if tokens > 0 and seconds > 0:
            self._prefill.append((tokens, seconds))

    def decoded(self, seconds: float) -> None:
        """A step took `seconds` to give every running segment one token."""
        if seconds > 0:
            self._decode.append(seconds)

    def costs(self) -> Costs:
        """What does a token cost now?

        A prefill step has a fixed cost, too, which short ones are all of: the cost of a token is the slope between
        the medians of the shorter and of the longer half of the steps (Brown and Mood's line).
        """
        prior = Costs()
        return Costs(self._slope() or prior.prefill, median(self._decode) if self._decode else prior.decode)

    def _slope(self) -> float | None:
        steps = sorted(self._prefill)
        half = len(steps) // 2
        if not half:
            return None
        (x0, y0), (x1, y1) = ((median(t for t, _ in h), median(s for _, s in h)) for h in (steps[:half], steps[-half:]))
        return (y1 - y0) / (x1 - x0) if x1 > x0 and y1 > y0 else None


class OutputLengths:
    """How many tokens will a segment generate? Its program's mean, pulled towards its class's mean, or the prior."""

    def __init__(self) -> None:
        self._classes: dict[str, tuple[int, float]] = {}

    def observe(self, program_class: str, tokens: int) -> None:
        """A segment of this class generated `tokens`. Memory is bounded: the class unseen for longest is forgotten."""
        count, mean = self._classes.pop(program_class, (0, 0.0))
        count = min(count + 1, CLASS_MEMORY)
        self._classes[program_class] = count, mean + (tokens - mean) / count
        if len(self._classes) > MAX_CLASSES:
            del self._classes[next(iter(self._classes))]

    def predict(self, program_class: str, finished: int, generated: int, max_new_tokens: int) -> float:
        """How many tokens will the next segment of a program generate that `generated` so many in `finished` segments?

        At least one, at most `max_new_tokens`.
        """
        _, mean = self._classes.get(program_class, (0, PRIOR_OUTPUT))
        return max(1.0, min((generated + PRIOR_WEIGHT * mean) / (finished + PRIOR_WEIGHT), max_new_tokens))


class ToolTimes:
    """How much longer will a tool take that has run for so long? From the last times of its (program class, tool)."""

    MEMORY = 64  # calls
    ENOUGH = 3  # calls, before history counts

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], deque[float]] = {}

    def observe(self, program_class: str, tool: str, seconds: float) -> None:
        """A call took `seconds`. Memory is bounded: the tool unseen for longest is forgotten."""
        times = self._seconds.pop((program_class, tool), None) or deque(maxlen=self.MEMORY)
        times.append(seconds)
        self._seconds[program_class, tool] = times
        if len(self._seconds) > MAX_CLASSES:
            del self._seconds[next(iter(self._seconds))]

    def remaining(self, program_class: str, tool: str, elapsed: float) -> float | None:
        """What is the median of the remaining seconds, given `elapsed`? None without enough history.

        Infinite for a call that outlasts all of history: with heavy tails, such a call lasts.
        """
        times = self._seconds.get((program_class, tool), ())
        if len(times) < self.ENOUGH:
            return None
        longer = sorted(times)
        longer = longer[bisect_right(longer, elapsed) :]
        return median(longer) - elapsed if longer else float("inf")
