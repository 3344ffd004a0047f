import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.tooltimes import MEMORY, ToolTimes


def tools(*seconds: float) -> ToolTimes:
    times = ToolTimes()
    for s in seconds:
        times.observe("react", "search", s)
    return times


def test_the_remaining_time_of_a_tool_is_the_median_of_those_that_took_longer():
    assert tools(1, 2, 3, 10, 20).median("react", "search", elapsed=2.5) == 7.5
    assert tools(1, 2, 3, 10).median("react", "search", elapsed=2.5) == 4.0


def test_the_mean_is_over_those_that_took_longer_too():
    assert tools(1, 2, 3, 10, 20).mean("react", "search", elapsed=2.0) == 9.0


def test_too_little_history_predicts_no_tool_time():
    assert tools(1, 2).median("react", "search", 0) is None
    assert tools(1, 2, 3).median("react", "other", 0) is None and tools(1, 2).mean("react", "search", 0) is None


def test_a_call_that_outlasts_all_of_history_is_expected_to_last():
    assert tools(1, 2, 3).median("react", "search", 3.0) == float("inf")
    assert tools(1, 2, 3).mean("react", "search", 30.0) == 30.0


def test_a_tool_that_changed_is_believed_within_a_window():
    assert tools(*[1] * 200, *[9] * MEMORY).median("react", "search", 0) == 9


def test_what_was_learned_survives_a_restart():
    again = ToolTimes()
    again.load(json.loads(json.dumps(tools(5, 1, 3).dump())))
    assert again.dump() == tools(5, 1, 3).dump()


@pytest.mark.parametrize("broken", [[["a", "b", [-1]]], [["a", "b", [float("nan")]]], [[1, "b", [1]]]])
def test_a_broken_dump_is_refused_and_nothing_is_lost(broken):
    times = tools(1, 2, 3)
    with pytest.raises(ValueError):
        times.load(broken)
    assert times.median("react", "search", 0) == 2


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=200), st.floats(0, 1e6))
def test_the_remaining_time_is_never_negative_and_looks_at_the_window_only(seconds, elapsed):
    times = tools(*seconds)
    longer = sorted(s for s in seconds[-MEMORY:] if s > elapsed)
    for remaining in (times.median("react", "search", elapsed), times.mean("react", "search", elapsed)):
        assert remaining is not None and remaining >= 0
        assert not longer or longer[0] - elapsed - 1e-6 <= remaining <= longer[-1] - elapsed + 1e-6


def test_a_time_to_live_is_the_one_that_pays_most():
    times = tools(1, 1, 1, 1, 30)
    assert times.ttl("react", "search", benefit=10.0) == 1  # 4/5 * 10 - 1, more than 10 - 30
    assert times.ttl("react", "search", benefit=1000.0) == 30
    assert times.ttl("react", "search", benefit=0.5) == 0  # no time pays


def test_without_history_one_waits_as_long_as_it_saves():
    assert tools(1).ttl("react", "search", benefit=4.0) == 4.0
