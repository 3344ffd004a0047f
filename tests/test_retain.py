import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.retain import NEVER, RETENTIONS, Choice, Pause, Wastes, adaptive, infercept, paper, ttl, wastes


def pause(
    own=1000, others=50_000, elapsed=0.0, remaining=None, mean=None, ttl=0.0, prefill=3e-5, copy=NEVER, pressure=True
):
    return Pause(own, others, elapsed, remaining, mean, ttl, prefill * own, copy * own, pressure)


def test_wastes_are_the_papers_without_the_bytes_of_a_token():
    terms = wastes(pause(own=100, others=5000, prefill=1e-4, copy=1e-5), tool=2.0)
    assert terms == Wastes(preserve=2.0 * 100, swap=2 * 100e-5 * 5000, discard=100e-4 * 5000)


def test_below_the_watermark_every_program_is_preserved():
    for rule in (adaptive, paper):
        assert rule(pause(remaining=1e6, mean=1e6, pressure=False)).choice is Choice.PRESERVE


def test_above_it_a_tool_longer_than_the_others_memory_takes_to_refill_is_discarded():
    refill = 3e-5 * 50_000
    assert adaptive(pause(remaining=0.9 * refill)).choice is Choice.PRESERVE
    assert adaptive(pause(remaining=1.1 * refill)).choice is Choice.DISCARD


def test_a_copy_cheaper_than_half_a_prefill_is_swapped_instead():
    assert adaptive(pause(remaining=60, copy=5e-6)).choice is Choice.SWAP
    assert adaptive(pause(remaining=60, copy=2e-5)).choice is Choice.DISCARD


def test_without_a_host_pool_nothing_is_swapped():
    assert wastes(pause(), 1.0).swap == NEVER


def test_nothing_to_lose_is_preserved():
    assert adaptive(pause(own=0, remaining=60)).choice is Choice.PRESERVE


def test_an_unknown_tool_is_taken_to_last_as_long_again():
    assert adaptive(pause(elapsed=0.0)).choice is Choice.PRESERVE
    assert adaptive(pause(elapsed=7.0)) == adaptive(pause(elapsed=7.0, remaining=7.0))


def test_the_papers_rule_knows_the_mean_of_a_category_only():
    for elapsed in (0.0, 5.0, 500.0):
        assert paper(pause(elapsed=elapsed, remaining=0.0, mean=60.0)).choice is Choice.DISCARD
        assert paper(pause(elapsed=elapsed, remaining=60.0, mean=0.1)).choice is Choice.PRESERVE


def test_infercept_weighs_at_any_pressure_and_by_elapsed_time():
    assert infercept(pause(elapsed=0.1, pressure=False)).choice is Choice.PRESERVE
    assert infercept(pause(elapsed=9.0, pressure=False, remaining=0.0)).choice is Choice.DISCARD


def test_a_time_to_live_ends():
    assert ttl(pause(elapsed=1.0, ttl=2.0)).choice is Choice.PRESERVE
    assert ttl(pause(elapsed=2.0, ttl=2.0)).choice is Choice.DISCARD


@pytest.mark.parametrize("name", ["preserve", "swap", "discard"])
def test_what_always_does_one_thing_does_it_at_any_pressure(name):
    rule = RETENTIONS[name].rule
    assert rule is not None
    assert all(rule(pause(remaining=r, pressure=p)).choice == name for r in (0.0, 99.0) for p in (True, False))


amounts = st.floats(0, 1e6)


@given(st.integers(0, 10**6), st.integers(0, 10**6), amounts, st.none() | amounts, st.floats(0, 1), st.floats(0, 1))
def test_adaptive_never_wastes_more_than_another_choice_would_under_pressure(own, others, elapsed, left, prefill, copy):
    verdict = adaptive(pause(own, others, elapsed, left, prefill=prefill, copy=copy))
    assert verdict.wastes.of(verdict.choice) == min(verdict.wastes)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_more_of_the_tool_to_come_never_turns_a_discard_into_a_preserve(a, b):
    less, more = sorted((a, b))
    if adaptive(pause(remaining=less)).choice is Choice.DISCARD:
        assert adaptive(pause(remaining=more)).choice is Choice.DISCARD
