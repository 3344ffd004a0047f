"""Programs that no client named, events about tools, and programs of different keys, in the table."""

import pytest

from astraea_sglang.hints import Hints
from astraea_sglang.program import State
from tests.builders import arrive, table

SYSTEM = list(range(100))
SPACE = ""


def ask(t, rid: str, prompt: list[int], space: str = SPACE, **hints):
    segment = t.arrive(rid, Hints(**hints), len(prompt), 64, prompt=prompt, space=space)
    t.start(segment, len(prompt))
    return segment


def answer(t, segment, prompt: list[int], output: list[int], tools=None) -> list[int]:
    t.advance(t.now + 1)
    t.serve(segment, len(output))
    t.finish(segment, output=output, tools=tools)
    return [*prompt, *output]


def turn(t, rid: str, prompt: list[int], output: list[int], tools=None, **hints):
    segment = ask(t, rid, prompt, **hints)
    return segment, answer(t, segment, prompt, output, tools)


OUT = [7, 8, 9, 10, 11]


def test_a_prompt_that_continues_a_call_is_the_next_segment_of_one_program():
    t = table()
    first, path = turn(t, "r1", SYSTEM, OUT, tools=("search",))
    assert first.program.state is State.TOOL_WAIT and first.program.next_tool == "search"
    second, _ = turn(t, "r2", [*path, 1, 2, 3], OUT, tools=())
    assert second.program is first.program and not t.programs
    (over,) = t.finished
    assert (over.id, over.why, over.segments, over.tools, over.identity) == ("r1", "answered", 2, ["search"], "prompt")


def test_a_chat_that_goes_on_after_its_answer_is_the_same_program():
    t = table()
    first, path = turn(t, "r1", SYSTEM, OUT, tools=("search",))
    second, path = turn(t, "r2", [*path, 1, 2, 3], OUT, tools=())
    third = ask(t, "r3", [*path, 4, 5, 6])
    assert third.program is first.program is second.program and not t.finished and third.program.segments == 3


def test_a_single_request_is_done_at_once_and_goes_on_when_continued():
    t = table()
    first, path = turn(t, "r1", SYSTEM, OUT)
    assert not t.programs and not t.finished and t.counts["final_programs"] == 1
    second = ask(t, "r2", [*path, 1, 2, 3])
    assert second.program is first.program and second.program.state is State.RUNNING
    answer(t, second, [*path, 1, 2, 3], OUT)
    assert second.program.state is State.TOOL_WAIT  # it has come back once


def test_strangers_with_a_common_prefix_stay_apart():
    t = table()
    turn(t, "r1", [*SYSTEM, 1, 2, 3], OUT)
    assert ask(t, "r2", [*SYSTEM, 4, 5, 6]).program.id == "r2"


def test_twins_are_nobodys():
    t = table()
    _, path = turn(t, "r1", SYSTEM, OUT)
    turn(t, "r2", SYSTEM, OUT)
    assert ask(t, "r3", [*path, 1]).program.id == "r3"


def test_prompts_are_compared_within_a_space_only():
    t = table()
    first = ask(t, "r1", SYSTEM, space="a")
    path = answer(t, first, SYSTEM, OUT)
    assert ask(t, "r2", [*path, 1], space="b").program is not first.program
    assert ask(t, "r3", [*path, 1], space="a").program is first.program


def test_named_programs_are_neither_recognised_nor_taken_for_others():
    t = table()
    _, path = turn(t, "r1", SYSTEM, OUT, program_id="p")
    assert ask(t, "r2", [*path, 1]).program.id == "r2"


def test_recognition_can_be_switched_off():
    t = table(recognise="off")
    _, path = turn(t, "r1", SYSTEM, OUT, tools=("search",))
    assert not t.programs and ask(t, "r2", [*path, 1]).program.id == "r2"


def test_no_client_can_name_a_nameless_program():
    t = table()
    first, _ = turn(t, "r1", SYSTEM, OUT, tools=("search",))
    assert arrive(t, "r2", "r1").program is not first.program and t.find("r1") is not first.program


def test_programs_of_different_keys_never_meet():
    t = table()
    mine, theirs = (t.arrive(rid, Hints("p", owner=owner), 100, 64) for rid, owner in (("1", "a"), ("2", "b")))
    assert mine.program is not theirs.program
    assert t.find("p") is None and t.find("p", "a") is mine.program
    child = t.arrive("3", Hints("c", parent_id="p", owner="b"), 100, 64)
    assert child.program.run is theirs.program.run
    assert not t.end("p", "c") and t.end("p", "a") and theirs.program.closing is None


def test_an_id_that_is_used_again_after_its_end_is_a_new_program():
    t = table()
    first = arrive(t, "1", "p", final=True)
    t.start(first, 100)
    t.finish(first)
    assert arrive(t, "2", "p").program is not first.program


def test_parents_that_do_not_exist_are_counted_and_cycles_end():
    t = table()
    a = arrive(t, "1", "a", parent_id="b")
    b = arrive(t, "2", "b", parent_id="a")
    assert t.counts["unknown_parents"] == 1 and a.program.run is b.program.run
    arrive(t, "3", "self", parent_id="self")
    assert t.counts["unknown_parents"] == 2


def test_a_pause_ends_when_all_its_tools_have():
    t = table()
    segment, _ = turn(t, "r1", SYSTEM, OUT, tools=("a", "b"), program_id="p")
    program = segment.program
    assert program.next_tool == "a+b" and t.tool_started(program, "1", "a")
    assert not t.tool_finished(program, tool="a") and t.tool_finished(program, tool="b")
    assert not t.tool_finished(program, tool="b") and t.counts["stray_events"] == 1
    assert not t.programs["p"].calls.running


def test_an_event_without_a_tool_ends_them_all():
    t = table()
    segment, _ = turn(t, "r1", SYSTEM, OUT, tools=("a", "b"), program_id="p")
    assert t.tool_finished(segment.program) and not segment.program.calls.running


def test_tools_that_ran_alone_tell_how_long_they_take_together():
    t = table()
    for name, seconds in [("a", 2.0), ("b", 5.0)] * 3:
        segment, _ = turn(t, "r", SYSTEM, OUT, tools=(name,), program_id="p")
        t.advance(t.now + seconds)
    segment, _ = turn(t, "r", SYSTEM, OUT, tools=("b", "a"), program_id="p")
    assert t.predictor.tool_remaining(segment.program, 0.0) == 5.0
    segment, _ = turn(t, "r", SYSTEM, OUT, tools=("a", "c"), program_id="p")
    assert t.predictor.tool_remaining(segment.program, 0.0) is None


def test_ten_thousand_nameless_programs_that_never_end_stay_bounded():
    t = table(max_programs=500)
    for i in range(10_000):
        turn(t, f"r{i}", [i, *SYSTEM], OUT, tools=("search",))
    assert len(t.programs) == 500 and len(t.nameless.continuations) <= 500


def test_a_program_that_is_over_is_not_paused():
    t = table()
    segment, _ = turn(t, "r1", SYSTEM, OUT)
    assert segment.program.idle_since is None
    again = ask(t, "r2", [*SYSTEM, *OUT, 1])
    assert again.program is segment.program and t.predictor.dump()["tools"] == [["~nameless", "", [0.0]]]


def test_a_parent_is_not_reaped_while_its_sub_agent_works():
    t = table(reap_after=4.0)
    parent, _ = turn(t, "r1", SYSTEM, OUT, program_id="p")
    child = ask(t, "r2", [1, 2], program_id="c", parent_id="p")
    t.advance(t.now + 10)
    assert t.find("p") is parent.program
    answer(t, child, [1, 2], OUT)
    t.advance(t.now + 3)  # the child's tool runs
    assert t.find("p") is parent.program
    t.advance(t.now + 10)
    assert t.find("p") is None and t.find("c") is None


OWN_WORDS = [50, 51, 52, 53, 54]


def test_a_client_that_writes_its_calls_in_its_own_words_is_recognised_by_the_prompt_before_them():
    t = table()
    first, _ = turn(t, "r1", SYSTEM, OUT, tools=("search",))
    assert ask(t, "r2", [*SYSTEM, *OWN_WORDS]).program is first.program


def test_a_chat_in_other_words_is_not():
    t = table()
    first, _ = turn(t, "r1", SYSTEM, OUT, tools=())
    assert ask(t, "r2", [*SYSTEM, *OWN_WORDS]).program is not first.program


def test_of_two_programs_with_one_prompt_own_words_are_nobodys():
    t = table()
    turn(t, "r1", SYSTEM, OUT, tools=("search",))
    turn(t, "r2", SYSTEM, [*OUT, 12], tools=("search",))
    assert ask(t, "r3", [*SYSTEM, *OWN_WORDS]).program.id == "r3"


def test_a_program_that_is_offered_no_tools_in_the_end_has_answered():
    t = table()
    _, path = turn(t, "r1", SYSTEM, OUT, tools=("search",))
    turn(t, "r2", [*path, 1], OUT)
    assert [over.why for over in t.finished] == ["answered"]


@pytest.mark.parametrize("tool", ["final_answer", "final_result"])
def test_a_call_that_only_hands_over_the_answer_is_the_answer(tool):
    t = table()
    _, path = turn(t, "r1", SYSTEM, OUT, tools=("search",))
    turn(t, "r2", [*path, 1], OUT, tools=(tool,))
    assert [(over.why, over.tools) for over in t.finished] == [("answered", ["search"])]
    third = ask(t, "r3", [*path, 1, *OWN_WORDS])  # the answer was refused, or the user goes on
    assert third.program.id == "r1" and third.program.segments == 3


def test_an_answer_beside_another_call_ends_nothing():
    t = table()
    first, _ = turn(t, "r1", SYSTEM, OUT, tools=("final_answer", "search"))
    assert first.program.state is State.TOOL_WAIT


def test_a_rid_that_a_client_chose_names_nobody_elses_program():
    t = table()
    one, _ = turn(t, "1", SYSTEM, OUT, tools=("search",), owner="a")
    two, _ = turn(t, "1", [5, *SYSTEM], [20, 21, 22, 23], tools=("search",), owner="b")
    assert one.program is not two.program and len(t.programs) == 2
    assert t.find("1", "a") is one.program and t.find("1", "b") is two.program and t.find("1") is None
    assert ask(t, "2", [5, *SYSTEM, 20, 21, 22, 23, 1], owner="b").program is two.program


def test_a_request_that_generates_nothing_neither_counts_nor_ends_its_program():
    t = table()
    for most in (0, 8):
        segment = t.arrive(f"r{most}", Hints("p", final=True), 10, most)
        t.start(segment, 10)
        t.finish(segment)
    assert [(over.segments, over.why) for over in t.finished] == [(1, "final")]


def test_an_output_that_no_parser_reads_is_no_answer():
    t = table()
    _, path = turn(t, "r1", SYSTEM, OUT, tools=("search",))
    segment, _ = turn(t, "r2", [*path, 1], OUT)
    assert segment.program.closing == "answered"
    t = table()
    _, path = turn(t, "r1", SYSTEM, OUT, tools=("search",))
    segment = t.arrive("r2", Hints(tools=("search",)), len(path) + 1, 64, prompt=[*path, 1])
    t.start(segment, 1)
    answer(t, segment, [*path, 1], OUT)
    assert segment.program.state is State.TOOL_WAIT
