import asyncio
import json
from collections import Counter
from typing import Any

import pytest
import xgrammar

from astraea_sglang.fleet.agents import ProgramRun, request_body, run_plan
from astraea_sglang.fleet.bfcl import Task, Toolbox, tasks
from astraea_sglang.fleet.plan import PlannedProgram, make_plan


def fleet(programs: int = 3, seed: int = 2) -> list[PlannedProgram]:
    return make_plan(tasks(), programs=programs, seed=seed, gap_s=0.01, factor=0.0)


def play(plan: list[PlannedProgram], url: str) -> tuple[list[ProgramRun], Counter[tuple[str, str]]]:
    events: Counter[tuple[str, str]] = Counter()
    runs = asyncio.run(run_plan(plan, url, lambda text: list(text.encode()), lambda *event: events.update([event])))
    return runs, events


def test_every_call_of_every_program_is_generated_and_executed(stand_in):
    plan = fleet()
    runs, events = play(plan, stand_in.url)
    assert [run.error for run in runs] == [None] * 3
    for program, run in zip(plan, runs, strict=True):
        names = [call.partition("(")[0] for turn in program.task.calls for call in turn]
        assert [tool.name for tool in run.tools] == names
        assert len(run.segments) == len(names)
        assert events["segment", program.id] == events["tool", program.id] == len(names)
        assert events["finished", program.id] == 1


def test_a_prompt_is_the_last_prompt_and_its_output_and_what_came_after(stand_in):
    (program,) = plan = fleet(1)
    play(plan, stand_in.url)
    box = Toolbox(program.task)
    for before, after in zip(stand_in.bodies, stand_in.bodies[1:], strict=False):
        call = stand_in.reference(before)
        known = before["input_ids"] + list(call.encode())
        assert after["input_ids"][: len(known)] == known
        tail = bytes(after["input_ids"][len(known) :]).decode()
        assert tail.startswith(f"\n<|im_start|>tool\n{box.call(call)}<|im_end|>\n")
        assert tail.endswith("<|im_start|>assistant\n")
    assert all(text in bytes(stand_in.bodies[-1]["input_ids"]).decode() for text in program.task.turns)


def test_segments_are_numbered_and_only_the_last_one_is_final(stand_in):
    (program,) = plan = fleet(1)
    play(plan, stand_in.url)
    hints = [stand_in.hint(body) for body in stand_in.bodies]
    assert [h["segment"] for h in hints] == list(range(len(hints)))
    assert [h.get("final", False) for h in hints] == [False] * (len(hints) - 1) + [True]
    assert {body["session_id"] for body in stand_in.bodies} == {h["program_id"] for h in hints} == {program.id}


def test_no_hint_tells_the_future(stand_in):
    play(fleet(1), stand_in.url)
    told = {key for body in stand_in.bodies for key in stand_in.hint(body)}
    assert told == {"program_id", "program_class", "segment", "final"}


def test_the_grammar_of_a_segment_admits_its_reference_call_and_no_other():
    program = PlannedProgram("p", Task("t", (), (), (), {}), 0.0, "qa", ())
    for call in {call for t in tasks() for turn in t.calls for call in turn}:
        grammar = xgrammar.Grammar.from_ebnf(request_body(program, 0, [], call, final=False)["sampling_params"]["ebnf"])
        assert xgrammar.testing._is_grammar_accept_string(grammar, call)
        assert not xgrammar.testing._is_grammar_accept_string(grammar, call + ")")


def test_times_are_in_order_and_never_before_the_arrival(stand_in):
    runs, _ = play(fleet(), stand_in.url)
    for run in runs:
        times = [run.arrival]
        for segment, tool in zip(run.segments, run.tools, strict=True):
            times += [segment.sent, segment.first_token, segment.finished, tool.start, tool.end]
        assert times == sorted(times)
        assert run.finished >= times[-1]


def test_tokens_computed_before_and_no_longer_cached_count_as_recomputed(stand_in):
    cached = iter([0, 30, 104])
    stand_in.answer = lambda body: [
        stand_in.chunk(stand_in.reference(body), cached_tokens=next(cached, 0), completion_tokens=5)
    ]
    runs, _ = play(fleet(1), stand_in.url)
    # 100 prompt tokens and 5 new ones, the last of them without KV: 104 can be found again
    assert [s.recomputed_tokens for s in runs[0].segments[:4]] == [0, 74, 0, 104]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (503, "/generate answered 503: no"),
        ([{"error": {"message": "prompt too long"}}], "prompt too long"),
        ([{"text": "c"}], "wanted"),
        ([], "wanted"),
        ("data: {oops\n\n", "JSONDecodeError"),
        (None, "RemoteProtocolError"),
    ],
)
def test_a_program_that_cannot_go_on_says_why_and_the_others_finish(stand_in, answer, told):
    first, *others = plan = fleet()
    stand_in.answer = lambda body: answer if body["session_id"] == first.id else stand_in.obedient(body)
    runs, events = play(plan, stand_in.url)
    assert told in str(runs[0].error)
    assert runs[0].segments == runs[0].tools == []
    assert [run.error for run in runs[1:]] == [None] * len(others)
    assert events["failed", first.id] == 1


def test_what_a_program_did_before_it_failed_is_kept(stand_in):
    stand_in.answer = lambda body: stand_in.obedient(body) if stand_in.hint(body)["segment"] == 0 else 500
    runs, _ = play(fleet(1), stand_in.url)
    assert len(runs[0].segments) == len(runs[0].tools) == 1
    assert runs[0].error is not None


def test_a_server_without_metrics_is_named_with_the_flag_it_lacks(stand_in):
    def silent(body: dict[str, Any]) -> list[dict[str, Any]]:
        (*_, last) = stand_in.obedient(body)
        del last["meta_info"]["queue_time"]
        return [json.loads(json.dumps(last))]

    stand_in.answer = silent
    runs, _ = play(fleet(1), stand_in.url)
    assert "--enable-metrics" in str(runs[0].error)


def test_without_a_server_every_program_is_reported_lost():
    runs, _ = play(fleet(), "http://127.0.0.1:9")
    assert all("ConnectError" in str(run.error) for run in runs)
