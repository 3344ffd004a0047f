from random import Random
from statistics import median

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from astraea_sglang import costs
from astraea_sglang.bench import device
from astraea_sglang.costs import ENOUGH, RECENT, REFIT_STEPS, WINDOW, Costs, StepCosts

H200 = device.load("h200-llama3.1-8b")
TRUE = Costs(H200.prefill_token_s, 0.0, H200.step_s, H200.row_s, H200.kv_token_s)  # its decode depends on the batch
STALLS = (2.0, 5.0, 1000.0)  # how many times as long a step takes that a fault, a pause or a compilation hits


def lengths(n: int, seed: int = 0) -> list[int]:
    """Of prefill steps: most are short answers of a tool, some are cold prompts."""
    random = Random(seed)
    return [random.randint(10, 60) if random.random() < 0.7 else random.randint(500, 4096) for _ in range(n)]


def batches(n: int, seed: int = 0) -> list[tuple[int, int]]:
    """Rows and KV tokens of decode steps."""
    random = Random(seed)
    return [(rows, sum(random.randint(100, 4000) for _ in range(rows))) for rows in random.choices(range(1, 65), k=n)]


def disturbed(seconds: list[float], noise: float = 0.0, stalls: float = 0.0, seed: int = 0) -> list[float]:
    """The times with relative noise, of which a share of `stalls` is hit by a stall or hides behind one."""
    random = Random(seed)
    hit = set(random.sample(range(len(seconds)), int(stalls * len(seconds))))
    return [
        s * max(0.2, random.gauss(1, noise)) * (random.choice((*STALLS, 0.01)) if i in hit else 1)
        for i, s in enumerate(seconds)
    ]


def prefills(tokens: list[int], times: list[float], steps: StepCosts | None = None) -> StepCosts:
    steps = steps or StepCosts()
    for n, seconds in zip(tokens, times, strict=True):
        steps.prefilled(n, seconds)
    return steps


def decodes(work: list[tuple[int, int]], times: list[float], steps: StepCosts | None = None) -> StepCosts:
    steps = steps or StepCosts()
    for (rows, kv), seconds in zip(work, times, strict=True):
        steps.decoded(rows, kv, seconds)
    return steps


def prefill_s(tokens: list[int], slower: float = 1.0) -> list[float]:
    return [slower * (TRUE.step + TRUE.prefill * n) for n in tokens]


def decode_s(work: list[tuple[int, int]], slower: float = 1.0, c: Costs = TRUE) -> list[float]:
    return [slower * (c.step + c.row * rows + c.kv * kv) for rows, kv in work]


def misses(c: Costs, work: list[tuple[int, int]], times: list[float]) -> float:
    """By what share is the worst prediction of these steps wrong?"""
    return max(abs(p / s - 1) for p, s in zip(decode_s(work, c=c), times, strict=True))


def test_rows_of_a_batch_share_the_fixed_part_of_a_step():
    costs = Costs(step=0.01, row=0.001, kv=1e-6)
    assert costs.token(1000) == pytest.approx(0.012) and costs.token(1000, share=0.1) == pytest.approx(0.003)


def test_the_prior_stands_until_steps_are_measured():
    few = ENOUGH - 1
    assert prefills([100, 200] * 2, [60.0] * few, decodes([(1, 9)] * few, [60.0] * few)).costs() == Costs()


def test_the_fixed_cost_of_a_step_is_not_a_tokens():
    tokens = [10, 20, 30, 1000, 2000]
    assert prefills(tokens, [0.5 + 0.001 * n for n in tokens]).costs().prefill == pytest.approx(0.001, rel=0.05)


def test_a_stall_is_not_a_tokens_cost():
    tokens = [100, 200] * 5
    times = [0.2 + 0.001 * n for n in tokens]
    times[3] = times[6] = 60.0
    c = prefills(tokens, times, decodes([(1, 100)] * 10, [0.1] * 4 + [60.0] + [0.1] * 4 + [60.0])).costs()
    assert (c.prefill, c.decode, c.step) == pytest.approx((0.001, 0.1, 0.1), rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_stalls_of_a_fifth_of_the_steps_hardly_move_the_prefill_cost(seed):
    tokens = lengths(WINDOW, seed)
    times = disturbed(prefill_s(tokens), 0.15, 0.2, seed)
    assert prefills(tokens, times).costs().prefill == pytest.approx(TRUE.prefill, rel=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_stalls_of_a_fifth_of_the_steps_hardly_move_predicted_decode_steps(seed):
    work = batches(WINDOW, seed)
    c = decodes(work, disturbed(decode_s(work), 0.15, 0.2, seed)).costs()
    assert misses(c, work, decode_s(work)) < 0.15
    assert c.decode == pytest.approx(median(decode_s(work[-RECENT:])), rel=0.15)


def test_a_rare_long_prefill_is_not_mistaken_for_a_stall():
    tokens = [40, 50, 60, 30, 20, 55, 35, 25, 45, 4000] * 6
    times = disturbed(prefill_s(tokens), noise=0.1)
    assert prefills(tokens, times).costs().prefill == pytest.approx(TRUE.prefill, rel=0.15)


def test_steps_of_one_length_measure_no_slope():
    assert prefills([1] * 9, [5.0] * 9).costs().prefill == pytest.approx(Costs().prefill)


def test_no_token_costs_more_than_its_share_of_a_step():
    assert prefills([1000] * 9, [0.001] * 9).costs().prefill == pytest.approx(1e-6)


def test_short_steps_of_one_length_leave_the_prior():
    steps = decodes([(1, 100)] * 9, [0.008] * 9)
    assert prefills([50] * 9, [0.02] * 9, steps).costs().prefill == pytest.approx(Costs().prefill)


def test_long_steps_of_one_length_are_mostly_tokens_once_decode_steps_tell_the_fixed_cost():
    steps = decodes([(1, 100)] * 9, [8.0] * 9)
    c = prefills([4096] * 9, prefill_s([4096] * 9, slower=1000), steps).costs()
    assert 0.8 * 0.03 < c.prefill < 1.1 * 0.03


def test_decode_steps_are_split_into_step_rows_and_kv():
    work = batches(WINDOW)
    assert decodes(work, decode_s(work)).costs()[2:] == pytest.approx(TRUE[2:], rel=0.02)


def test_a_batch_that_never_changes_is_all_step():
    c = decodes([(8, 4000)] * 20, [0.01] * 20).costs()
    assert c[1:5] == pytest.approx((0.01, 0.01, 0, 0), abs=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_kv_in_proportion_to_rows_still_predicts_the_steps_seen(noise):
    work = [(rows, 1000 * rows) for rows, _ in batches(WINDOW)]
    c = decodes(work, disturbed(decode_s(work), noise)).costs()
    assert misses(c, work, decode_s(work)) < 0.01 + noise / 2
    assert c.row <= 0.012 / 16 and c.kv <= 0.012 / 16000


def test_kv_that_makes_steps_faster_costs_nothing():
    work = [(8, kv) for kv in range(1000, 60_000, 1000)]
    assert decodes(work, [0.02 - 1e-7 * kv for _, kv in work]).costs().kv == 0


@pytest.mark.parametrize("slower", [0.1, 1000])
def test_another_machine_is_measured_within_thirty_steps(slower):
    tokens, work = lengths(30), batches(30)
    steps = decodes(work, disturbed(decode_s(work, slower), 0.1))
    c = prefills(tokens, disturbed(prefill_s(tokens, slower), 0.1), steps).costs()
    assert c.prefill == pytest.approx(slower * TRUE.prefill, rel=0.25)
    assert misses(c, work, decode_s(work, slower)) < 0.15


@pytest.mark.parametrize("slower", [0.1, 3, 100])
def test_after_a_window_only_the_recent_speed_counts(slower):
    tokens, work = lengths(WINDOW), batches(WINDOW)
    steps = decodes(work, decode_s(work), prefills(tokens, prefill_s(tokens)))
    assert steps.costs().prefill == pytest.approx(TRUE.prefill, rel=0.05)
    c = decodes(work, decode_s(work, slower), prefills(tokens, prefill_s(tokens, slower), steps)).costs()
    assert c.prefill == pytest.approx(slower * TRUE.prefill, rel=0.05)
    assert misses(c, work, decode_s(work, slower)) < 0.02


def test_the_latency_of_a_token_follows_the_last_few_steps():
    steps = decodes([(1, 10)] * WINDOW, [0.01] * WINDOW)
    assert decodes([(1, 10)] * RECENT, [0.03] * RECENT, steps).costs().decode == 0.03


@pytest.mark.parametrize("seed", range(3))
def test_on_the_emulated_device_the_prefill_cost_is_the_mean_of_a_token_with_its_attention(seed):
    random = Random(seed)
    tokens = lengths(WINDOW, seed)
    contexts = [n + random.choice((0, random.randint(500, 8000))) for n in tokens]
    times = [H200.step([(n, context)], 0, 0) for n, context in zip(tokens, contexts, strict=True)]
    mean = (sum(times) - WINDOW * H200.step_s) / sum(tokens)
    assert prefills(tokens, disturbed(times, 0.1, 0.1, seed)).costs().prefill == pytest.approx(mean, rel=0.15)


def test_a_few_new_short_steps_leave_the_answer_as_it_was():
    steps = decodes([(1, 10)] * WINDOW, [0.01] * WINDOW)
    before = steps.costs()
    assert decodes([(1, 10)] * (REFIT_STEPS - 1), [0.02] * (REFIT_STEPS - 1), steps).costs() is before
    assert decodes([(1, 10)], [0.02], steps).costs() is not before


def test_on_a_slow_machine_every_step_is_news(monkeypatch):
    fits = []
    monkeypatch.setattr(costs, "_fit", lambda steps: fits.append(len(steps)) or [1.0, 0.0, 0.0])
    steps = decodes([(1, 10)] * 6, [10.0] * 6)
    for _ in range(3):
        steps.costs()
        steps.decoded(1, 10, 10.0)
    assert fits == [6, 7, 8]


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e-300, 1e300])
@pytest.mark.parametrize("count", [0, -5, float("nan"), 10**400])
def test_steps_that_cannot_be_are_ignored(seconds, count):
    steps = StepCosts()
    for _ in range(9):
        steps.prefilled(5, seconds)
        steps.prefilled(count, 1.0)
        steps.decoded(5, 5, seconds)
        steps.decoded(count, 5, 1.0)
    steps.decoded(5, -5, 1.0)
    assert steps.costs() == Costs()


anything = st.tuples(
    st.integers(-1, 10**6) | st.integers(),
    st.integers(-1, 10**8) | st.integers(),
    st.floats(1e-9, 1e6) | st.floats(1e-3, 1.0) | st.floats(),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(anything, min_size=5, max_size=40), st.lists(anything, min_size=5, max_size=40))
@example([(1, 0, 1e-9), (10**9, 10**9, 1e6)] * 5, [(10**9, 0, 1e-9), (1, 10**9, 1e6)] * 5)
def test_costs_are_finite_and_never_negative_whatever_is_measured(decoded, prefilled):
    steps = decodes([(rows, kv) for rows, kv, _ in decoded], [seconds for *_, seconds in decoded])
    c = prefills([n for n, *_ in prefilled], [seconds for *_, seconds in prefilled], steps).costs()
    assert 0 < c.prefill < 1e7 and 0 < c.decode < 1e7
    assert all(0 <= part < 1e7 for part in c[2:]) and any(c[2:])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 64), st.integers(0, 100_000)), min_size=10, max_size=WINDOW),
    st.floats(1e-4, 10),
    st.floats(0, 1e-2),
    st.floats(0, 1e-5),
)
def test_any_steps_that_follow_the_model_are_predicted(work, step, row, kv):
    times = decode_s(work, c=Costs(step=step, row=row, kv=kv))
    assert misses(decodes(work, times).costs(), work, times) < 0.2


@settings(max_examples=60, deadline=None)
@given(st.integers(30, WINDOW), st.floats(1e-3, 1e3), st.integers(0, 10**6))
def test_a_fifth_of_stalls_hardly_moves_any_machines_decode_steps(n, slower, seed):
    work = batches(n, seed)
    times = decode_s(work, slower)
    assert misses(decodes(work, disturbed(times, 0.0, 0.2, seed)).costs(), work, times) < 0.25


def test_copies_cost_what_the_last_ones_took():
    steps = StepCosts()
    for seconds in (0.01, 0.02, 0.03, 1e9, -1.0):  # the last two are no times
        steps.copied(1000, seconds)
    assert steps.costs().copy == pytest.approx(2e-5)
