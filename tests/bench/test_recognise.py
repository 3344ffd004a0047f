import io

import pytest
from rich.console import Console

from astraea_sglang.bench import recognise
from astraea_sglang.bench.recognise import Hard, Row, measure, tell
from astraea_sglang.errors import ConfigError


def row(hard: Hard, workload: str = "small", programs: int = 12) -> Row:
    (found,) = measure(workload, 1, programs=programs, cases={"case": hard})
    return found


@pytest.mark.parametrize(
    "hard",
    [
        Hard(),
        Hard(opening=40),
        Hard(chats=3),
        Hard(twins=6, alike=0),
        Hard(thought=0.5),
        Hard(twins=6, alike=0, thought=0.5),
    ],
    ids=["as they are", "outputs that begin alike", "chats", "samples", "thoughts", "samples with thoughts"],
)
def test_programs_that_differ_somewhere_are_all_recognised(hard):
    found = row(hard)
    assert found.follow_ups > 40
    assert (found.precision, found.recall, found.ambiguous) == (1.0, 1.0, 0)


def test_sub_agents_are_programs_of_their_own():
    found = row(Hard(), workload="forks", programs=4)
    assert (found.precision, found.recall) == (1.0, 1.0)


def test_chats_add_requests_that_continue_nothing():
    plain, crowded = row(Hard()), row(Hard(chats=3))
    assert (crowded.requests, crowded.follow_ups) == (plain.requests + 36, plain.follow_ups)


def test_retokenised_outputs_are_recognised_by_their_beginning():
    assert row(Hard(changed=5)).recall > 0.97  # of a few outputs too little is left
    assert row(Hard(changed=10_000)).recall == 0.0


def test_greedy_twins_are_ambiguous_while_they_are_alike_and_never_confused():
    found = row(Hard(twins=3))
    assert found.ambiguous > 0
    assert found.precision == 1.0 and 0.5 < found.recall < 1.0
    assert row(Hard(twins=3, alike=3)).recall < found.recall


def test_a_trimmed_history_is_a_new_program_and_is_recognised_from_then_on():
    assert row(Hard(trimmed=1.0)).recall == 0.0
    some = row(Hard(trimmed=0.2))
    assert 0.6 < some.recall < 1.0 and some.precision == 1.0


def test_an_index_that_is_too_small_costs_recall_not_precision():
    found = row(Hard(most=1))
    assert found.recall < 0.9 and found.precision == 1.0


def test_a_twin_is_taken_for_the_other_when_that_ones_segment_is_forgotten():
    found = row(Hard(twins=3, most=2), programs=30)
    assert found.claimed > found.right  # the measurement can show a wrong merge


def test_equal_arguments_give_equal_rows():
    assert row(Hard(twins=2, trimmed=0.2)) == row(Hard(twins=2, trimmed=0.2))


@pytest.mark.server  # the slow set: it imports transformers
@pytest.mark.parametrize("hard", [Hard(), Hard(changed=1)], ids=["as they are", "arguments spelled anew"])
def test_real_tasks_rendered_by_a_chat_template_are_all_recognised(hard):
    found = row(hard, workload="bfcl", programs=4)
    assert found.follow_ups > 4
    assert (found.precision, found.recall, found.ambiguous) == (1.0, 1.0, 0)


def test_rows_are_told_with_what_is_made_up():
    text = io.StringIO()
    tell(
        [Row("small", "case", 1, 90, 80, 70, 63, 5), Row("small", "none", 2, 0, 0, 0, 0, 0)],
        Console(file=text, width=80),
    )
    told = text.getvalue()
    assert "small, seed 1" in told and "small, seed 2" in told
    assert "case 80 5 7 90.00% 78.75%" in " ".join(told.split())
    assert "token ids are made up" in told


@pytest.mark.parametrize(
    ("workload", "seeds", "why"), [("what", "1", "is unknown"), ("small", "x", "give whole numbers")]
)
def test_what_cannot_be_measured_is_refused_with_what_can(workload, seeds, why):
    with pytest.raises(ConfigError, match=why):
        recognise.run(workload, seeds)
