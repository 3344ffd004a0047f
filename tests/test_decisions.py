import json

import pytest

from astraea_sglang.decisions import KEPT, Decision, Decisions
from astraea_sglang.retain import NEVER, Choice, Wastes


def decision(choice=Choice.PRESERVE, at=0.0, tokens=100, terms=(1000.0, NEVER, 500.0)):
    return Decision(at, "p", "react", "search", choice, tokens, 0.0, 10.0, Wastes(*terms), True)


def test_regret_is_what_was_wasted_beyond_the_least_in_hindsight():
    kept = decision(Choice.PRESERVE)
    assert kept.close(actual=7.0) and kept.regret == 7.0 * 100 - 500
    dropped = decision(Choice.DISCARD)
    assert dropped.close(actual=1.0) and dropped.regret == 500 - 100
    assert not decision(Choice.DISCARD).close(actual=99.0)


def test_a_return_closes_every_decision_of_its_pause_and_counts_the_wrong_ones():
    decisions = Decisions()
    first, second = decision(Choice.PRESERVE, at=0.0), decision(Choice.DISCARD, at=4.0)
    for each in (first, second):
        decisions.add(each)
    decisions.returned([first, second], now=10.0)
    assert (first.actual, second.actual) == (10.0, 6.0)
    assert decisions.totals["mispredictions"] == 1


def test_lost_tokens_are_ours_only_if_we_chose_to_discard_them():
    decisions = Decisions()
    decisions.resumed(decision(Choice.PRESERVE), known=100, cached=40)
    assert decisions.totals["recomputed_by_choice_tokens"] == 0
    decisions.resumed(decision(Choice.DISCARD), known=100, cached=40)
    decisions.resumed(None, known=100, cached=100)
    assert decisions.totals["recomputed_by_choice_tokens"] == 60
    assert decisions.totals["recomputed_tokens"] == 120
    assert decisions.snapshot()["totals"]["return_hit_rate"] == pytest.approx(180 / 300)


def test_the_ring_is_bounded_and_json_ready():
    decisions = Decisions()
    for i in range(KEPT + 10):
        decisions.add(decision(at=i))
    snapshot = json.loads(json.dumps(decisions.snapshot(), allow_nan=False))
    assert len(snapshot["decisions"]) == KEPT and snapshot["decisions"][0]["at"] == 10
    assert snapshot["decisions"][0]["wastes"] == {"preserve": 1000.0, "swap": None, "discard": 500.0}
