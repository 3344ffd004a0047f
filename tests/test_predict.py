import json

import pytest

from astraea_sglang.predict import PRIOR_OUTPUT, Predictor
from tests.builders import arrive, run, table


def test_without_history_a_program_is_expected_to_do_as_much_again():
    t = table()
    assert arrive(t, "a").later.segments == 1
    run(t, t.programs["p"].live["a"], 10)
    assert arrive(t, "b").later.segments > 1


def test_nothing_follows_a_final_segment_or_an_anonymous_one():
    t = table()
    assert arrive(t, "a", final=True).later == (0, 0, 0) == arrive(t, "b", program=None).later


def test_a_new_program_is_predicted_from_its_class_and_no_other():
    t = table()
    for i in range(40):
        run(t, arrive(t, str(i), program=str(i), program_class="terse", final=True), 20)
    assert arrive(t, "x", program="x", program_class="terse").output == pytest.approx(20, rel=0.3)
    assert arrive(t, "y", program="y", program_class="other").output == PRIOR_OUTPUT


def test_a_programs_own_segments_outweigh_its_class():
    t = table()
    for i in range(98):
        run(t, arrive(t, str(i)), 100)
    run(t, arrive(t, "x", program="x"), 10)
    assert arrive(t, "last").output == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("most", [1, 16])
def test_the_request_bounds_the_prediction(most):
    t = table()
    segment = arrive(t, "a")
    segment.max_new_tokens = most
    assert t.predictor.arrived(segment, None)[0] == most


def test_anonymous_requests_teach_output_lengths_to_their_like_and_nothing_of_how_programs_go_on():
    t = table()
    for i in range(200):
        run(t, arrive(t, str(i), program=None), 30)
    assert arrive(t, "a", program=None).output == pytest.approx(30, rel=0.2)
    named = arrive(t, "b", program="p")
    assert named.output > 100 and named.later.segments == 1


def test_a_tools_time_is_the_declared_one_until_history_knows_better():
    t = table()
    for i in range(4):
        run(t, arrive(t, str(i), next_tool="search", expected_tool_s=5.0), 10)
        program = t.programs["p"]
        assert t.predictor.tool_remaining(program, 1.0) == (4.0 if i < 3 else 1.0)
        assert t.predictor.tool_remaining(program, 7.0) == (7.0 if i < 3 else float("inf"))
        t.advance(t.now + 2.0)


def test_what_was_learned_survives_a_restart():
    t = table()
    for i in range(9):
        run(t, arrive(t, str(i), program=str(i), program_class="react", next_tool="search"), 20)
        t.advance(t.now + 3)
        run(t, arrive(t, f"b{i}", program=str(i), program_class="react", final=True), 20)
    again = table()
    again.predictor.load(json.loads(json.dumps(t.predictor.dump())))
    assert again.predictor.dump() == t.predictor.dump()
    one, two = (arrive(x, "z", program="z", program_class="react") for x in (t, again))
    assert one.output == two.output and one.later == pytest.approx(two.later)


@pytest.mark.parametrize("mode", ["off", "declared"])
def test_who_does_not_learn_does_not_use_what_was_learned_before(mode):
    wise, t = table(), table(prediction=mode)
    for i in range(9):
        run(wise, arrive(wise, str(i), program=str(i), next_tool="search"), 500)
        wise.advance(wise.now + 3)
        run(wise, arrive(wise, f"b{i}", program=str(i), final=True), 500)
    t.predictor.load(wise.predictor.dump())
    segment = arrive(t, "a", next_tool="search")
    assert (segment.output, segment.later.segments) == (PRIOR_OUTPUT, 1)
    assert t.predictor.tool_remaining(segment.program, 0.0) is None


@pytest.mark.parametrize(
    "broken", [None, [], {}, {"format": 2}, {"format": 1, "classes": {}}, {"format": 1, "classes": [], "tools": []}]
)
def test_a_broken_dump_is_refused_with_a_reason(broken):
    with pytest.raises(ValueError):
        Predictor().load(broken)
