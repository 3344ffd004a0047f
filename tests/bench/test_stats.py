import math
from random import Random
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astraea_sglang.bench.stats import (
    Bounds,
    by_policy,
    capacities,
    capacity,
    compare,
    jain,
    pooled,
    ratio,
    scenarios,
    sweeps,
)


def run(policy: str, seed: int = 1, engine: tuple[float, ...] = (), **figures: Any) -> dict[str, Any]:
    """A run whose programs took `engine` seconds there, ten more in tools, and one when alone."""
    rows = [{"id": f"p{n}", "jct": e + 10, "engine": e, "slowdown": e} for n, e in enumerate(engine)]
    return {"workload": "coding", "load": 1.0, "policy": policy, "seed": seed, "per_program": rows} | figures


def slow(load: float, slowdown: float, policy: str = "fcfs", seed: int = 1) -> dict[str, Any]:
    return {"load": load, "policy": policy, "seed": seed, "slowdown_mean": slowdown, "workload": "coding"}


def test_seeds_are_pooled_over_their_programs():
    seen = pooled([run("fcfs", 1, (1.0, 2.0, 3.0)), run("fcfs", 2, (10.0,))])
    assert (seen["engine_mean"], seen["jct_mean"], seen["slowdown_mean"]) == (4.0, 14.0, 4.0)
    assert (seen["jct_p50"], seen["jct_p95"], seen["engine_p99"]) == (12.0, 20.0, 10.0)


def test_without_programs_the_means_of_the_seeds_are_taken_and_the_worst_stays_the_worst():
    seen = pooled([{"jct_mean": 10.0, "slowdown_max": 9.0}, {"jct_mean": 20.0, "slowdown_max": 3.0}])
    assert (seen["jct_mean"], seen["slowdown_max"]) == (15.0, 9.0)


@pytest.mark.parametrize("runs", [[], [{"seed": 1}], [{"jct_mean": None}], [{"jct_mean": math.nan}]])
def test_what_no_run_tells_is_not_a_number(runs):
    assert math.isnan(pooled(runs)["jct_mean"])


@pytest.mark.parametrize(
    ("slowdowns", "index"), [((2.0, 2.0, 2.0), 1.0), ((1.0, 0.0, 0.0, 0.0), 0.25), ((1, 6), 49 / 74)]
)
def test_jain_is_one_for_equals_and_one_nth_if_one_bears_it_all(slowdowns, index):
    assert jain(slowdowns) == pytest.approx(index)


def test_a_ratio_is_of_the_programs_that_both_have():
    mine, base = run("lpm", 1, (2.0, 3.0)), run("fcfs", 1, (4.0, 6.0, 1000.0))
    found = ratio([mine, run("lpm", 2, (9.0,))], [base], "engine")
    assert found is not None and found.value == 0.5 and math.isnan(found.low)


def test_without_a_common_seed_there_is_no_ratio():
    assert ratio([run("lpm", 1, (1.0,))], [run("fcfs", 2, (1.0,))], "engine") is None


def test_an_interval_done_by_hand():
    # Sums 1, 2, 3 over 2, 4, 6: seeds that agree leave no doubt. 1, 2, 4.5 over 2, 4, 6: R = 7.5 / 12.
    base = [run("fcfs", seed, (2.0 * seed,)) for seed in (1, 2, 3)]
    agreed = ratio([run("lpm", seed, (1.0 * seed,)) for seed in (1, 2, 3)], base, "engine")
    assert agreed == (0.5, 0.5, 0.5)
    found = ratio([run("lpm", seed, (e,)) for seed, e in ((1, 1.0), (2, 2.0), (3, 4.5))], base, "engine")
    error = math.sqrt((0.25**2 + 0.5**2 + 0.75**2) * 3 / 2) / 7.5
    assert found == pytest.approx(
        (0.625, 0.625 / math.exp(4.30265 * error), 0.625 * math.exp(4.30265 * error)), rel=1e-5
    )


def test_of_experiments_with_three_seeds_about_95_in_100_intervals_hold_the_true_ratio():
    random, held, truth = Random(1), 0, 0.5 * math.exp(0.25**2 / 2)
    for _ in range(400):
        base = [run("fcfs", seed, (math.exp(random.gauss(0, 0.5)),)) for seed in (1, 2, 3)]
        mine = [
            run("a", seed + 1, (of["per_program"][0]["engine"] * 0.5 * math.exp(random.gauss(0, 0.25)),))
            for seed, of in enumerate(base)
        ]
        found = ratio(mine, base, "engine")
        assert found is not None
        held += found.low <= truth <= found.high
    assert 0.90 <= held / 400 <= 0.98


@settings(deadline=None)  # the first call imports
@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=2, max_size=6), st.floats(0.1, 10))
def test_an_interval_holds_its_ratio_and_scales_with_it(pairs, factor):
    base = [run("fcfs", seed, (below,)) for seed, (below, _) in enumerate(pairs)]
    mine = [run("a", seed, (above,)) for seed, (_, above) in enumerate(pairs)]
    scaled = [run("a", seed, (above * factor,)) for seed, (_, above) in enumerate(pairs)]
    one, two = ratio(mine, base, "engine"), ratio(scaled, base, "engine")
    assert one is not None and two is not None
    assert one.low <= one.value <= one.high
    assert [value * factor for value in one] == pytest.approx(two, rel=1e-6)


@settings(deadline=None)  # the first call imports
@given(st.permutations([run("fcfs", 1, (4.0,)), run("fcfs", 2, (6.0,)), run("a", 1, (1.0,)), run("a", 2, (2.0,))]))
def test_results_in_any_order_give_the_same_lines(results):
    lines = {line.policy: line for line in compare(results)}
    assert lines["a"].ratios["engine_mean"] == 0.3 and lines["a"].seeds == (1, 2)


def test_a_policy_is_compared_over_the_seeds_that_both_have():
    runs = [run("fcfs", 1, (4.0,)), run("fcfs", 2, (100.0,)), run("a", 1, (2.0,))]
    _, line = compare(runs)
    assert line.ratios["jct_p99"] == 12 / 14 and line.ratios["engine_mean"] == 0.5


def test_without_fcfs_nothing_is_compared():
    assert [line.ratios for line in compare([run("a", 1, (1.0,)), run("b", 1, (1.0,))])] == [{}, {}]


def test_only_runs_under_the_same_conditions_meet():
    results = [run("fcfs"), run("fcfs", load=1.3), run("a"), run("a", arrivals="gamma:3"), run("b", mixed_chunk=True)]
    assert [[r["policy"] for r in group] for group in scenarios(results)] == [["fcfs", "a"], ["fcfs"], ["a"], ["b"]]
    assert list(by_policy(results)) == ["fcfs", "a", "b"]
    assert [list(sweep) for sweep in sweeps(results[::-1])] == [[1.0, 1.3]]


def carried(*points: tuple[float, float]) -> Bounds | None:
    return capacity({load: [slow(load, slowdown)] for load, slowdown in points})


@pytest.mark.parametrize(
    ("points", "text"),
    [
        (((0.7, 1.0), (1.0, 9.0)), "0.85"),  # 3 is half way from 1 to 9 on a log scale
        (((1.0, 9.0), (0.7, 1.0)), "0.85"),
        (((0.7, 1.5), (1.6, 2.9)), ">1.60"),
        (((0.7, 3.1), (1.0, 9.0)), "<0.70"),
        (((0.7, 1.0), (1.0, 3.0), (1.3, 3.0001)), "1.00"),
        (((0.7, 1.0), (1.0, 9.0), (1.3, 2.0)), "0.85"),  # what is carried again beyond is luck
        (((0.7, math.nan),), "None"),
        ((), "None"),
    ],
)
def test_capacity_is_where_the_slowdown_passes_three(points, text):
    assert str(carried(*points)) == text


def test_capacity_pools_the_seeds():
    points = {0.7: [slow(0.7, 1.0)], 1.0: [slow(1.0, 1.0, seed=1), slow(1.0, 17.0, seed=2)]}
    assert str(capacity(points)) == "0.85"


@given(st.lists(st.floats(1.0, 50), min_size=2, max_size=6).map(sorted))
def test_capacity_lies_between_the_loads_around_it(slowdowns):
    found = carried(*enumerate(slowdowns, 1))
    assert found is not None
    within = [load for load, slowdown in enumerate(slowdowns, 1) if slowdown <= 3]
    assert max(within, default=0) <= found.low <= found.high
    assert found.low <= max(within, default=0) + 1


@pytest.mark.parametrize(
    ("base", "other", "text"),
    [((1.0, 9.0), (1.0, 9.0), "1.00"), ((1.0, 9.0), (1.0, 1.0), ">1.33"), ((4.0, 9.0), (1.0, 1.0), ">2.00"),
     ((1.0, 2.0), (1.0, 1.0), "?"), ((1.0, 9.0), (4.0, 9.0), "<0.67"), ((1.0, 2.0), (1.0, 9.0), "<0.75")],
)  # fmt: skip
def test_a_capacity_is_compared_with_that_of_fcfs_as_far_as_both_are_known(base, other, text):
    sweep = {
        load: [slow(load, base[n]), slow(load, other[n], "a"), slow(load, 1.0, "unloaded")]
        for n, load in enumerate((1.0, 2.0))
    }
    found = capacities(sweep)
    assert list(found) == ["fcfs", "a"]
    assert str(found["a"][1]) == text


def test_capacities_without_fcfs_stand_alone():
    assert capacities({1.0: [slow(1.0, 1.0, "a")], 2.0: [slow(2.0, 9.0, "a")]})["a"] == (Bounds(1.5, 1.5), None)


def test_means_by_seed_do_not_weigh_programs():
    assert pooled([run("a", 1, (1.0,) * 9, jain=0.2), run("a", 2, (1.0,), jain=0.8)])["jain"] == fmean((0.2, 0.8))
