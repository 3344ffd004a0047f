"""At which arrival rate does an engine begin to thrash? Found by bisection, every measurement kept."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from astraea_sglang.errors import ConfigError

WIDENINGS = 8  # how often a bracket may be doubled or halved: beyond 256 times, it was not a guess


@dataclass(frozen=True, slots=True)
class Knee:
    """Between which arrival rates (programs/s) does the slowdown pass `limit`?

    It was within at `low` and beyond at `high`. `low` is 0 if it was beyond wherever measured, `high` infinite if
    it never was. `points` are all measurements (rate, slowdown), in the order made.
    """

    low: float
    high: float
    limit: float
    points: tuple[tuple[float, float], ...]

    @property
    def found(self) -> bool:
        """Is it bracketed from both sides?"""
        return self.low > 0 and math.isfinite(self.high)

    def __str__(self) -> str:
        if self.found:
            return f"{self.low:.4g} programs/s ({self.high:.4g} is beyond)"
        return f"above {self.low:.4g} programs/s" if self.low else f"below {self.high:.4g} programs/s"


def knee(measure: Callable[[float], float], low: float, high: float, *, limit: float, tolerance: float) -> Knee:
    """Up to which arrival rate (programs/s) does `measure(rate)`, a mean engine slowdown, stay within `limit`?

    Looks between `low` and `high`, and beyond them by up to WIDENINGS doublings; ends when the bracket is no wider than
    `tolerance` of its lower end. No rate is measured twice. Near a knee a slowdown is noise more than a curve: the
    answer is then one of its crossings, the same at every call. Raises ConfigError for arguments that make no sense,
    and when a measurement is no number.
    """
    if not 0 < low < high < math.inf:
        raise ConfigError(
            f"a knee is looked for from {low:g} to {high:g}; give two rates, 0 < low < high, as 0.5 and 4"
        )
    if not 0 < tolerance < math.inf or not 0 < limit < math.inf:
        raise ConfigError(f"a knee with limit {limit:g} and tolerance {tolerance:g}: both are above 0, as 3 and 0.03")
    seen: dict[float, float] = {}

    def within(rate: float) -> bool:
        if rate not in seen:
            seen[rate] = measure(rate)
        if math.isnan(seen[rate]):
            raise ConfigError(f"the slowdown at {rate:g} programs/s is not a number; see the log of that run")
        return seen[rate] <= limit

    least, most = low / 2**WIDENINGS, high * 2**WIDENINGS
    while not within(low):
        if low <= least:
            return Knee(0.0, low, limit, tuple(seen.items()))
        low, high = low / 2, low
    while within(high):
        if high >= most:
            return Knee(high, math.inf, limit, tuple(seen.items()))
        low, high = high, high * 2
    while high > low * (1 + tolerance):
        middle = math.sqrt(low * high)
        if not low < middle < high:
            break  # no number lies between
        low, high = (middle, high) if within(middle) else (low, middle)
    return Knee(low, high, limit, tuple(seen.items()))
