import json
import tracemalloc
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang import history as module
from astraea_sglang.history import END, MAX_CLASS_NODES, MEMORY, MOST, History, Rest, position, visit

UNKNOWN = Rest(1, 64, 128)


def run(history: History, nodes: list[str], *, new=10, output=20, end=True, program_class="react") -> None:
    before = None
    for node in nodes:
        history.arrived(program_class, before, node, new)
        history.generated(program_class, node, output)
        before = node
    if end and before is not None:
        history.ended(program_class, before)


def chain(length: int) -> list[str]:
    return [position(i) for i in range(length)]


def learned(*programs: list[str], times: int = 1, **more) -> History:
    history = History()
    for _ in range(times):
        for nodes in programs:
            run(history, nodes, **more)
    return history


def test_positions_are_exact_at_first_and_coarse_later():
    assert [position(i) for i in (0, 31, 32, 63, 64, 1_000_000)] == ["#0", "#31", "#32", "#32", "#64", "#524288"]


def test_without_history_the_prior_stands():
    assert History().rest("react", "#0", UNKNOWN) == UNKNOWN and History().output("react", "#0", 128) == 128


def test_the_rest_of_a_program_is_learned_from_others_of_its_class():
    rest = learned(chain(4), times=50).rest("react", "#0", UNKNOWN)
    assert rest.segments == pytest.approx(3, rel=0.1)
    assert rest.new == pytest.approx(30, rel=0.2) and rest.output == pytest.approx(60, rel=0.2)


def test_the_rest_shrinks_as_a_program_goes_on():
    history = learned(chain(6), times=50)
    left = [history.rest("react", node, UNKNOWN).segments for node in chain(6)]
    assert left == sorted(left, reverse=True) and left[-1] < 0.1


def test_programs_that_still_run_count_so_short_ones_do_not_mislead():
    history = learned(chain(2))
    for _ in range(9):
        run(history, chain(6), end=False)  # none of the long ones has ended yet
    assert history.rest("react", "#0", UNKNOWN).segments > 3


def test_a_branch_counts_as_often_as_it_is_taken():
    history = learned(["plan", "short"], *[["plan", *"abcdefg"]] * 3, times=20)
    assert history.rest("react", "plan", UNKNOWN).segments == pytest.approx(0.25 * 1 + 0.75 * 7, rel=0.15)


def test_a_loop_is_learned_round_by_round():
    rounds = [visit("think", i + 1) for i in range(5)]
    history = learned([*rounds, "answer"], times=50)
    left = [history.rest("react", node, UNKNOWN).segments for node in rounds]
    assert left == pytest.approx([5, 4, 3, 2, 1], rel=0.15)


def test_a_loop_whose_rounds_are_not_told_apart_is_memoryless():
    rest = learned(["think"] * 5 + ["answer"], times=50).rest("react", "think", UNKNOWN)
    assert rest.segments == pytest.approx(5, rel=0.15)  # after each round the answer follows in one of five cases


def test_classes_do_not_share_history():
    assert learned(chain(9), times=9).rest("other", "#0", UNKNOWN) == UNKNOWN


def test_a_node_nobody_saw_is_predicted_from_its_class_and_a_seen_one_from_itself():
    history = learned(["long"], times=40, output=500)
    for _ in range(40):
        run(history, ["short"], output=100)
    assert history.output("react", "long", 128) == pytest.approx(500, rel=0.1)
    assert 100 < history.output("react", "new", 128) < 500


def test_a_prior_counts_for_little_once_samples_are_there():
    history = learned(chain(2), times=20)
    assert history.rest("react", "#0", Rest(1000, 1e5, 1e5)).segments < 100
    for _ in range(100):
        run(history, chain(2))
    assert history.rest("react", "#0", Rest(1000, 1e5, 1e5)).segments < 50


def test_what_one_client_declares_changes_no_prediction_of_anothers():
    history, other = learned(chain(4), times=20), learned(chain(4), times=20)
    for node in chain(5):
        history.rest("react", node, Rest(MOST, MOST, MOST))
    for h in (history, other):
        run(h, chain(4))
    assert history.rest("react", "#0", UNKNOWN) == other.rest("react", "#0", UNKNOWN)


def test_old_behaviour_fades():
    history = learned(chain(9), times=200)
    for _ in range(int(6 * MEMORY)):
        run(history, chain(1), output=5)
    assert history.rest("react", "#0", END).segments < 0.5
    assert history.output("react", "#0", 128) == pytest.approx(5, abs=2)


def test_what_was_learned_survives_a_restart():
    history, again = learned(chain(5), ["a", "b"], times=9), History()
    again.load(json.loads(json.dumps(history.dump())))
    assert again.dump() == history.dump()
    assert again.rest("react", "#1", UNKNOWN) == pytest.approx(history.rest("react", "#1", UNKNOWN), rel=0.05)


@pytest.mark.parametrize("broken", [[], {"a": {}}, {"a": {"outputs": -1, "output": 0, "nodes": {}}}, {"a": 3}])
def test_a_broken_dump_is_refused_and_nothing_is_lost(broken):
    history = learned(chain(3))
    before = history.dump()
    with pytest.raises((ValueError, KeyError, TypeError)):
        history.load(broken)
    assert history.dump() == before


def test_a_long_name_takes_no_more_room_than_a_short_one():
    history = learned(["n" * 128], times=9, program_class="c" * 128)
    assert all(len(name) <= 32 for name in history.dump()) and history.output("c" * 128, "new", 128) < 64


def test_a_hundred_thousand_class_names_take_bounded_memory(monkeypatch):
    monkeypatch.setattr(module, "MAX_NODES", 1000)
    history = History()
    tracemalloc.start()
    for i in range(100_000):
        history.arrived(f"class {i}", None, "#0", 1)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(history.dump()) == 1000 and used < 1000 * 2048
    assert "class 99999" in history.dump()


def test_one_class_cannot_hold_more_than_its_share_of_nodes():
    history = History()
    for i in range(10_000):
        history.arrived("react", f"n{i - 1}", f"n{i}", 1)
    assert len(history.dump()["react"]["nodes"]) == MAX_CLASS_NODES


names = st.sampled_from(["#0", "#1", "a", "b", "c", "d"])


@given(st.lists(st.tuples(st.lists(names, max_size=12), st.booleans()), max_size=30), st.integers(0, 10**9), names)
def test_predictions_are_finite_and_never_negative_whatever_happens(programs, tokens, node):
    history = History()
    for nodes, end in programs:
        run(history, nodes, new=tokens, output=tokens, end=end)
        rest = history.rest("react", node, UNKNOWN)
        assert all(0 <= part <= MOST for part in rest)
        assert 0 <= history.output("react", node, 128) <= max(128, tokens)


def test_two_histories_fed_alike_predict_alike():
    one, two, random = History(), History(), Random(1)
    for _ in range(300):
        nodes = [random.choice("abcd") for _ in range(random.randint(1, 9))]
        for history in (one, two):
            run(history, nodes, new=len(nodes), output=7)
    assert [one.rest("react", n, UNKNOWN) for n in "abcd"] == [two.rest("react", n, UNKNOWN) for n in "abcd"]
