import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.bench.knee import WIDENINGS, Knee, knee
from astraea_sglang.errors import ConfigError


class Measured:
    """A slowdown by rate that counts how often it is asked."""

    def __init__(self, slowdown):
        self.slowdown, self.rates = slowdown, []

    def __call__(self, rate: float) -> float:
        self.rates.append(rate)
        return self.slowdown(rate)


def find(slowdown, low: float = 1.0, high: float = 4.0, tolerance: float = 0.05) -> tuple[Knee, list[float]]:
    measure = Measured(slowdown)
    return knee(measure, low, high, limit=3.0, tolerance=tolerance), measure.rates


def step(at: float):
    return lambda rate: 1.0 if rate <= at else 10.0


@given(st.floats(0.05, 100), st.floats(0.001, 0.5))
def test_a_step_is_found_from_any_bracket_that_is_not_absurd(at, tolerance):
    found, rates = find(step(at), tolerance=tolerance)
    assert found.found and found.low <= at < found.high <= found.low * (1 + tolerance)
    assert (
        len(rates) == len(set(rates)) <= 2 + WIDENINGS + math.ceil(math.log2(math.log(4) / math.log(1 + tolerance))) + 1
    )


@given(st.floats(0.3, 30), st.floats(0.2, 3))
def test_a_curve_is_cut_where_it_passes_the_limit(at, power):
    found, _ = find(lambda rate: 3.0 * (rate / at) ** power)
    assert found.low * (1 - 1e-9) <= at <= found.high * (1 + 1e-9)


@given(st.floats(0.1, 50), st.integers(0, 999))
def test_noise_near_the_step_ends_at_one_of_its_crossings_the_same_each_time(at, seed):
    def noisy(rate: float) -> float:
        distance = math.log(rate / at)
        return 3.0 + 10 * distance + Random(f"{seed} {rate!r}").gauss(0, 2)

    found, rates = find(noisy)
    assert found.points == tuple((rate, noisy(rate)) for rate in rates)
    assert len(rates) == len(set(rates)) <= 2 + 2 * WIDENINGS + 7
    assert not found.low or dict(found.points)[found.low] <= 3.0
    assert math.isinf(found.high) or dict(found.points)[found.high] > 3.0
    assert not found.found or found.high <= found.low * 1.05
    assert find(noisy)[0] == found


@pytest.mark.parametrize(("slowdown", "text"), [(1.0, "above 1024 programs/s"), (9.0, "below 0.003906 programs/s")])
def test_what_never_crosses_is_given_up_and_said(slowdown, text):
    found, rates = find(lambda rate: slowdown)
    assert not found.found and str(found) == text
    assert len(rates) <= 2 + WIDENINGS


def test_a_knee_reads_as_a_rate():
    assert str(find(step(2.0))[0]) == "2 programs/s (2.089 is beyond)"


def test_an_infinite_slowdown_is_beyond_the_limit():
    assert find(lambda rate: 1.0 if rate <= 2 else math.inf)[0].low == 2.0


def test_a_measurement_that_is_no_number_is_refused_with_its_rate():
    with pytest.raises(ConfigError, match="slowdown at 1 programs/s is not a number"):
        find(lambda rate: math.nan)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_a_bracket_that_is_none_is_refused(low, high):
    with pytest.raises(ConfigError, match="give two rates"):
        find(step(1), low, high)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.inf, math.nan])
def test_a_tolerance_that_cannot_be_met_is_refused(tolerance):
    with pytest.raises(ConfigError, match="both are above 0"):
        find(step(1), tolerance=tolerance)


def test_a_tolerance_finer_than_numbers_ends():
    found, _ = find(step(2.0), tolerance=1e-300)
    assert found.low == 2.0 and found.high == math.nextafter(2.0, 3.0)
