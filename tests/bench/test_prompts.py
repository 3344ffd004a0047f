from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan, Shared
from astraea_sglang.bench.prompts import Prompts

STEPS = SegmentPlan(5, 3, 1.0, "t"), SegmentPlan(7, 2, 0.0, None)


def program(id: str, *prefix: Shared, steps: tuple[SegmentPlan, ...] = STEPS) -> ProgramPlan:
    return ProgramPlan(id, "c", 0.0, 64, steps, prefix)


def common(one: list[int], other: list[int]) -> int:
    """How many tokens do two prompts begin with alike?"""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


def test_a_prompt_begins_with_the_one_before_and_what_it_generated():
    prompts = Prompts([program("a", Shared("s", 4))])
    first, second = list(prompts.ids(0, 0)), list(prompts.ids(0, 1))
    assert (len(first), len(second)) == (prompts.length(0, 0), prompts.length(0, 1)) == (9, 19)
    assert second[:9] == first and second[9:12] == [prompts.own(0)] * 3


def test_programs_share_what_their_plans_share_and_no_more():
    prompts = Prompts([program("a", Shared("s", 4), Shared("x", 2)), program("b", Shared("s", 4), Shared("y", 2))])
    assert common(list(prompts.ids(0, 0)), list(prompts.ids(1, 0))) == 4


def test_a_shared_beginning_is_known_once_somebody_has_computed_it():
    plans = [program("a", Shared("s", 4), Shared("x", 2)), program("b", Shared("s", 4), Shared("y", 2))]
    prompts = Prompts(plans)
    assert prompts.known(1, 0) == 0
    prompts.computed(0)
    assert prompts.known(1, 0) == 4
    prompts.computed(1)
    assert (prompts.known(0, 0), prompts.known(1, 0)) == (6, 6)


def test_of_a_segment_before_all_is_known_but_its_last_token():
    assert Prompts([program("a")]).known(0, 1) == 5 + 3 - 1


def test_what_is_dropped_of_a_context_is_not_found_again():
    steps = STEPS[0], SegmentPlan(7, 2, 0.0, None, kept=3)
    prompts = Prompts([program("a", steps=steps)])
    first, second = list(prompts.ids(0, 0)), list(prompts.ids(0, 1))
    assert len(second) == prompts.length(0, 1) == 10
    assert common(first, second) == prompts.known(0, 1) == 3


@given(st.lists(st.lists(st.tuples(st.sampled_from("xyz"), st.just(3)), max_size=4), min_size=2, max_size=6))
def test_two_prompts_are_alike_exactly_as_far_as_their_prefixes(prefixes):
    plans = [program(f"p{i}", *(Shared(*run) for run in prefix)) for i, prefix in enumerate(prefixes)]
    prompts = Prompts(plans)
    ids = [list(prompts.ids(i, 0)) for i in range(len(plans))]
    for i, one in enumerate(prefixes):
        for j in range(i):
            alike = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, prefixes[j], strict=False))))
            assert common(ids[i], ids[j]) == 3 * alike
