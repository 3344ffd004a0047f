import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.predict import PRIOR_OUTPUT, Costs, OutputLengths, StepCosts


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
    for seconds in (0.1, 0.1, 60.0):
        steps.decoded(seconds)
        steps.prefilled(100, seconds)
    assert steps.costs() == Costs(prefill=0.001, decode=0.1)


def test_a_tiny_prefill_measures_nothing():
    steps = StepCosts()
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
