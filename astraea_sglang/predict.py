"""How long will a segment compute? Its output length from history, and the measured cost of a token on this engine."""

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
    MIN_PREFILL = 16  # tokens: a shorter prefill measures the step, not the token

    def __init__(self) -> None:
        self._prefill: deque[float] = deque(maxlen=self.WINDOW)
        self._decode: deque[float] = deque(maxlen=self.WINDOW)

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A step took `seconds` to prefill `tokens`."""
        if tokens >= self.MIN_PREFILL and seconds > 0:
            self._prefill.append(seconds / tokens)

    def decoded(self, seconds: float) -> None:
        """A step took `seconds` to give every running segment one token."""
        if seconds > 0:
            self._decode.append(seconds)

    def costs(self) -> Costs:
        """What does a token cost now?"""
        prior = Costs()
        return Costs(
            median(self._prefill) if self._prefill else prior.prefill,
            median(self._decode) if self._decode else prior.decode,
        )


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
