from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astraea_sglang.beginnings import BLOCK, Prompt
from astraea_sglang.continuations import BRANCHES, ENOUGH, KEPT, Continuations

SYSTEM = [7] * 100
ASKED = [*SYSTEM, 1, 2, 3]
SAID = [10, 11, 12, 13, 14, 15]
TOOL = [20, 21]


class Index(Continuations):
    """One that takes token ids."""

    def finished(self, program, prompt, output, space="", *, enough=ENOUGH):
        super().finished(program, Prompt(prompt, space), output, enough=enough)

    def continued(self, prompt, space=""):
        return super().continued(Prompt(prompt, space))


def index(*finished: tuple, most: int = 64) -> Index:
    held = Index(most)
    for each in finished:
        held.finished(*each)
    return held


def test_a_prompt_that_goes_on_after_a_finished_segment_is_its_programs_next():
    held = index(("a", ASKED, SAID))
    assert held.continued(ASKED + SAID + TOOL) == "a"
    assert held.counts == {"recognised": 1}


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        ASKED,
        ASKED + SAID[:3] + TOOL,
        ASKED + SAID[:ENOUGH],
        ASKED[:-1] + SAID + TOOL,
        [*SYSTEM, 9, 2, 3, *SAID, *TOOL],
        [8, *ASKED[1:], *SAID, *TOOL],
        ASKED + TOOL + SAID,
    ],
    ids=["nothing", "the same again", "three tokens of the output", "no more than the output's beginning",
         "part of the prompt", "another question", "another first token", "another output"],
)  # fmt: skip
def test_what_shares_less_with_a_segment_is_nobodys(prompt):
    held = index(("a", ASKED, SAID))
    assert held.continued(prompt) is None
    assert held.counts == {"unknown": 1}


@pytest.mark.parametrize("length", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 2, 3 * BLOCK])
@pytest.mark.parametrize("output", [1, 3, ENOUGH, KEPT - 1, KEPT + 50])
def test_every_length_of_prompt_and_output_is_recognised_and_one_wrong_token_is_not(length, output):
    prompt, said = list(range(length)), list(range(1000, 1000 + output))
    held = index(("a", prompt, said))
    assert held.continued(prompt + said + TOOL) == "a"
    for wrong in (0, length - 1, length + min(output, ENOUGH) - 1):
        other = prompt + said + TOOL
        other[wrong] += 5
        assert held.continued(other) is None


@pytest.mark.parametrize("kept", range(ENOUGH, len(SAID) + 1))
def test_a_template_may_render_the_end_of_an_output_anew(kept):
    assert index(("a", ASKED, SAID)).continued(ASKED + SAID[:kept] + [99] + TOOL) == "a"


def test_an_output_whose_beginning_the_template_drops_may_be_told_twice():
    thought = [30, 31, 32, 33]
    held = index(("a", ASKED, thought + SAID), ("a", ASKED, SAID))
    assert held.continued(ASKED + SAID + TOOL) == held.continued(ASKED + thought + SAID + TOOL) == "a"


def test_a_segment_without_output_leaves_nothing_to_recognise_it_by():
    held = index(("a", ASKED, []))
    assert len(held) == 0 and held.continued(ASKED + TOOL) is None


def test_another_space_is_another_world():
    held = index(("a", ASKED, SAID, "x"), ("b", ASKED, SAID, "y"))
    follow_up = ASKED + SAID + TOOL
    assert [held.continued(follow_up, space) for space in ("x", "y", "", "x\0", "\ud800")] == [
        "a",
        "b",
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("rendered", [0, 65, 255], ids=["below", "as it was", "above"])
def test_of_samples_of_one_prompt_each_is_followed_by_its_own(rendered):
    said = {f"p{i}": [10, 11, 12, 13, i, 65] for i in range(20)}
    held = index(*((program, ASKED, output) for program, output in said.items()))
    assert {program: held.continued(ASKED + output[:-1] + [rendered]) for program, output in said.items()} == {
        p: p for p in said
    }


def test_a_prompt_that_leaves_all_samples_at_the_same_token_is_nobodys():
    held = index(*((f"p{i}", ASKED, [10, 11, 12, 13, i]) for i in range(3)))
    assert held.continued([*ASKED, 10, 11, 12, 13, 99, *TOOL]) is None
    assert held.counts == {"ambiguous": 1}


@pytest.mark.parametrize("length", [10, BLOCK - 2], ids=["one block", "two blocks"])
def test_programs_that_agree_equally_far_from_different_prompts_are_not_told_apart(length):
    prompt = list(range(length))
    held = index(("a", prompt, SAID), ("b", prompt + SAID[:2], SAID[2:]))
    assert held.continued(prompt + SAID + TOOL) is None and held.counts == {"ambiguous": 1}


def test_twins_with_the_same_output_are_told_apart_once_one_has_gone_on():
    held = index(("a", ASKED, SAID), ("b", ASKED, SAID))
    assert held.continued(ASKED + SAID + TOOL) is None and held.counts == {"ambiguous": 1}
    held.finished("a", ASKED + SAID + TOOL, SAID)
    assert held.continued(ASKED + SAID + [99]) == "b"
    assert held.continued(ASKED + SAID + TOOL + SAID + TOOL) == "a"


def test_a_program_that_repeats_an_earlier_one_is_not_taken_for_it():
    held = Index()
    paths = [ASKED, ASKED + SAID + TOOL, ASKED + 2 * (SAID + TOOL)]
    for program in ("first", "second", "third"):
        for number, prompt in enumerate(paths):
            assert held.continued(prompt) == (program if number else None)
            held.finished(program, prompt, SAID)


def test_a_request_sent_twice_and_a_history_edited_still_find_their_program():
    held = index(("a", ASKED, SAID), ("a", ASKED + SAID + TOOL, SAID))
    assert held.continued(ASKED + SAID + TOOL) == "a"
    assert held.continued(ASKED + SAID + [98, 99]) == "a"


def test_branches_of_a_program_stand_side_by_side():
    branches = [ASKED + SAID + [i] for i in range(30, 34)]
    held = index(("a", ASKED, SAID), *(("a", branch, SAID) for branch in branches))
    assert {held.continued(branch + SAID + TOOL) for branch in branches} == {"a"}
    assert len(held) == 5


def test_a_branch_is_not_forgotten_before_what_the_program_has_passed():
    held = index(("a", ASKED, SAID), *(("a", ASKED + SAID + [i], SAID) for i in range(BRANCHES)))
    assert len(held) == BRANCHES
    assert held.continued(ASKED + SAID + [0] + SAID + TOOL) == "a"
    assert held.continued(ASKED + SAID + [99]) is None


def test_what_programs_have_passed_is_forgotten_first_then_the_oldest():
    held = index(("old", [1, 2], SAID), ("a", ASKED, SAID), ("a", ASKED + SAID + TOOL, SAID), most=3)
    held.finished("new", [3, 4], SAID)
    assert held.continued(ASKED + SAID + [99]) is None
    assert held.continued([1, 2, *SAID, *TOOL]) == "old"
    held.finished("newer", [5, 6], SAID)
    assert held.continued([1, 2, *SAID, *TOOL]) is None
    assert held.continued(ASKED + SAID + TOOL + SAID + TOOL) == "a"
    assert (len(held), held.counts["forgotten"]) == (3, 2)


def test_a_program_that_is_forgotten_leaves_nothing():
    held = index(("a", ASKED, SAID), ("a", ASKED + SAID + TOOL, SAID), ("b", ASKED, SAID))
    held.forget("a")
    held.forget("nobody")
    assert len(held) == 1 and held.continued(ASKED + SAID + TOOL) == "b"


def test_the_same_segment_told_again_is_remembered_once():
    assert len(index(*[("a", ASKED, SAID)] * 5)) == 1


@pytest.mark.parametrize("most", [0, 1])
def test_so_small_an_index_holds_no_more(most):
    held = index(("a", ASKED, SAID), ("b", TOOL, SAID), most=most)
    assert len(held) == most and held.continued(TOOL + SAID + TOOL) == ("b" if most else None)


def test_arrays_and_lists_of_tokens_are_alike():
    held = index(("a", array("q", ASKED), SAID), ("b", [8, *ASKED], array("q", SAID)))
    assert held.continued(ASKED + SAID + TOOL) == "a"
    assert held.continued(array("q", [8, *ASKED, *SAID, *TOOL])) == "b"


def test_beginnings_can_be_asked_for_in_any_order():
    tokens = list(range(5 * BLOCK))
    one, other = Prompt(tokens), Prompt(tokens)
    up, down = [one.digest(blocks) for blocks in range(6)], [other.digest(blocks) for blocks in range(5, -1, -1)]
    assert up == down[::-1] == [Prompt(tokens[: blocks * BLOCK]).digest(blocks) for blocks in range(6)]
    assert len(set(up)) == 6


class Plainly:
    """The same rules over everything there is, with no digest, no order and no bound."""

    def __init__(self) -> None:
        self.paths: list[tuple[str, list[int], list[int], str]] = []
        self.passed: list[tuple[str, list[int], list[int], str]] = []

    def finished(self, program, prompt, output, space):
        path = (program, prompt, output, space)
        self.passed = [each for each in self.passed if each != path]
        self.paths = [each for each in self.paths if each != path]
        for old in list(self.paths):
            if (old[0], old[3]) == (program, space) and len(prompt) > len(old[1]) and begins(prompt, old[1]):
                self.paths.remove(old)
                self.passed.append(old)
        self.paths.append(path)

    def continued(self, prompt, space):
        fits = [(agreed, late, path[0]) for late, paths in enumerate((self.passed, self.paths)) for path in paths
                if path[3] == space and (agreed := agreement(prompt, *path[1:3]))]  # fmt: skip
        best = {program for agreed, late, program in fits if (agreed, late) == max(fits)[:2]}
        return best.pop() if len(best) == 1 else None


def begins(prompt, start) -> bool:
    return prompt[: len(start)] == start


def agreement(prompt, before, output) -> int:
    """Tokens in which a prompt that continues a segment agrees with it; 0 if it does not."""
    needed = len(before) + min(len(output), ENOUGH)
    path = before + output
    if not output or len(prompt) <= needed or not begins(prompt, path[:needed]):
        return 0
    return next((i for i, pair in enumerate(zip(prompt, path, strict=False)) if pair[0] != pair[1]),
                min(len(prompt), len(path)))  # fmt: skip


tokens = st.lists(st.integers(0, 1), max_size=6)
lengths = st.sampled_from([0, 1, BLOCK - 2, BLOCK, 2 * BLOCK - 1])
prompts = st.builds(lambda shared, own: [0] * shared + own, lengths, tokens)
spaces = st.sampled_from(["", "tenant"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), prompts, tokens, spaces), max_size=25), st.data())
def test_it_answers_as_if_it_compared_every_token(finished, data):
    held, plainly = Index(), Plainly()
    for each in finished:
        held.finished(*each)
        if each[2]:
            plainly.finished(*each)
    continuing = st.builds(
        lambda path, more: path[1] + path[2] + more, st.sampled_from(finished or [("", [], [], "")]), tokens
    )
    for prompt, space in data.draw(st.lists(st.tuples(prompts | continuing, spaces), min_size=1, max_size=8)):
        assert held.continued(prompt, space) == plainly.continued(prompt, space)
    for program in "abc":
        held.forget(program)
    assert len(held) == 0 and held.continued([0] * 99) is None


agents = st.lists(st.tuples(lengths, tokens, spaces), min_size=2, max_size=20)  # what each begins with
turns = st.lists(st.tuples(st.integers(0, 19), tokens, tokens), max_size=60)  # whose turn, more output, a tool's answer


@settings(deadline=None)
@given(agents, turns, st.integers(1, 30))
def test_agents_whose_outputs_differ_at_once_are_never_merged(agents, turns, most):
    """Their prompts begin alike, are short, and share an alphabet of two; nothing but outputs tells them apart."""
    held, again = Index(most), Index(most)
    prompts = [[0] * shared + own for shared, own, _ in agents]
    owners: dict[str, int] = {}  # of the programs that the index knows
    for turn, (number, more, answer) in enumerate(turns):
        number %= len(agents)
        prompt, space = prompts[number], agents[number][2]
        found = held.continued(prompt, space)
        assert found == again.continued(prompt, space)
        assert found is None or owners[found] == number
        program = found or f"{turn}"
        owners.setdefault(program, number)
        output = [10 + number // 4**digit % 4 for digit in range(ENOUGH)] + more
        for each in (held, again):
            each.finished(program, prompt, output, space)
        assert len(held) <= most
        prompts[number] = prompt + output + answer
