import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.predict import PRIOR_OUTPUT, Costs, OutputLengths, StepCosts, ToolTimes


def seen(*tokens, program_class="react") -> OutputLengths:
    lengths = OutputLengths()
    for n in tokens:
        lengths.observe(program_class, n)
    return lengths


def test_without_history_the_prior_is_predicted():
    assert seen().predict("react", 0, 0, 4096) == PRIOR_OUTPUT


def test_a_new_program_is_predicted_from_its_class():
    assert seen(20, 30, 40).predict("react", 0, 0, 4096) == 30


def test_classes_do_not_share_history():
    assert seen(20, 30, 40).predict("chat", 0, 0, 4096) == PRIOR_OUTPUT


def test_a_programs_own_segments_outweigh_its_class():
    assert seen(10).predict("react", 98, 98 * 100, 4096) == pytest.approx(98.2)


def test_the_request_bounds_the_prediction():
    assert seen().predict("react", 0, 0, 16) == 16


def test_work_is_prefill_of_uncached_tokens_plus_decode():
    assert Costs(prefill=0.01, decode=0.1).work(100, 5) == pytest.approx(1.5)  # Astraea 4.2


def test_measured_costs_are_medians_so_one_stall_does_not_count():
    steps = StepCosts()
    for tokens, seconds in ((100, 0.3), (200, 0.4), (100, 0.3), (100, 60.0), (200, 0.4), (200, 0.4)):
        steps.prefilled(tokens, seconds)
        steps.decoded(0.1)
    steps.decoded(60.0)
    assert steps.costs() == pytest.approx((0.001, 0.1))


def test_the_fixed_cost_of_a_step_is_not_a_tokens():
    steps = StepCosts()
    for tokens in (10, 20, 1000, 2000):
        steps.prefilled(tokens, 0.5 + 0.001 * tokens)
    assert steps.costs().prefill == pytest.approx(0.001)


def test_steps_of_one_length_measure_no_slope():
    steps = StepCosts()
    for _ in range(9):
        steps.prefilled(1, 5.0)
    assert steps.costs() == Costs()


@given(st.lists(st.integers(0, 100_000), max_size=200), st.integers(1, 8192))
def test_a_prediction_lies_between_one_token_and_the_maximum(tokens, most):
    assert 1 <= seen(*tokens).predict("react", len(tokens), sum(tokens), most) <= most


def test_memory_is_bounded_however_many_classes_come():
    lengths = OutputLengths()
    for i in range(5000):
        lengths.observe(str(i), 7)
    assert lengths.predict("4999", 0, 0, 99) == 7
    assert lengths.predict("0", 0, 0, 4096) == PRIOR_OUTPUT


def tools(*seconds: float) -> ToolTimes:
    times = ToolTimes()
    for s in seconds:
        times.observe("react", "search", s)
    return times


def test_the_remaining_time_of_a_tool_is_the_median_of_those_that_took_longer():
    assert tools(1, 2, 3, 10, 20).remaining("react", "search", elapsed=2.5) == 7.5


def test_too_little_history_predicts_no_tool_time():
    assert tools(1, 2).remaining("react", "search", 0) is None
    assert tools(1, 2, 3).remaining("react", "other", 0) is None


def test_a_call_that_outlasts_all_of_history_is_expected_to_last():
    assert tools(1, 2, 3).remaining("react", "search", 3.0) == float("inf")


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=100), st.floats(0, 1e6))
def test_the_remaining_time_is_never_negative(seconds, elapsed):
    remaining = tools(*seconds).remaining("react", "search", elapsed)
    assert remaining is not None and remaining >= 0
