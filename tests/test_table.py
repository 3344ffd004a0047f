import pytest

from astraea_sglang import structure as structures
from astraea_sglang import table as module
from astraea_sglang.costs import Costs
from astraea_sglang.hints import Hints
from astraea_sglang.order import Waiting
from astraea_sglang.program import State
from astraea_sglang.structure import digest, parse
from astraea_sglang.table import Pool, ProgramTable
from tests.builders import CHAIN, arrive, run, table


def rids(t: ProgramTable, *waiting) -> list[str]:
    return t.plan(waiting, Pool(10_000)).order


def view(t: ProgramTable, segment, resident: int = 0) -> Waiting:
    """What orders see of a segment that waits alone."""
    t.plan([(segment, resident)], Pool(10_000))
    return segment.view


def test_a_program_goes_from_ready_to_running_to_tool_wait_to_done():
    t = table()
    first = arrive(t, "a", next_tool="search")
    program = first.program
    assert (program.state, program.next_tool) == (State.READY, "search")
    t.start(first, 100)
    assert program.state is State.RUNNING
    t.finish(first)
    assert (program.state, program.next_tool) == (State.TOOL_WAIT, "search")
    run(t, arrive(t, "b", final=True), 10)
    assert program.state is State.DONE and not t.programs
    assert [(f.id, f.why, f.segments) for f in t.finished] == [("p", "final", 2)]


def test_a_request_that_names_no_program_is_one_of_a_single_segment():
    t = table()
    run(t, arrive(t, "a", program=None), 5)
    assert not t.programs and not t.finished


def test_an_anonymous_request_cannot_join_a_program_by_its_rid():
    t = table()
    named, anonymous = arrive(t, "a", program="p"), arrive(t, "p", program=None)
    assert named.program is not anonymous.program


def test_wait_is_summed_over_the_segments_of_a_program():
    t = table()
    for rid, waited in (("a", 3.0), ("b", 4.0)):
        segment = arrive(t, rid)
        t.advance(t.now + waited)
        run(t, segment, 10)
        t.advance(t.now + 100)  # a tool's time is no wait
    assert t.programs["p"].waits.until(t.now) == 7.0


def test_parallel_segments_wait_once():
    t = table()
    a, b = arrive(t, "a"), arrive(t, "b")
    t.advance(5.0)
    t.start(a, 1)
    t.advance(6.0)
    t.start(b, 1)
    assert t.programs["p"].waits.until(t.now) == 6.0


def test_a_retracted_segment_waits_again_and_keeps_its_tokens():
    t = table()
    a = arrive(t, "a")
    t.start(a, 100)
    t.serve(a, 7)
    t.requeue(a)
    t.advance(2.0)
    assert (a.program.state, a.program.waits.until(t.now), a.program.attained) == (State.READY, 2.0, 107)


def test_attained_service_counts_prefill_and_generated_tokens_of_live_segments_too():
    t = table()
    run(t, arrive(t, "a"), 20)
    b = arrive(t, "b")
    t.start(b, 30)
    t.serve(b, 5)
    assert t.programs["p"].attained == 100 + 20 + 30 + 5


def test_an_abandoned_program_is_reaped_after_its_time_and_not_before():
    t = table(reap_after=60)
    run(t, arrive(t, "a"), 10)
    t.advance(t.now + 60)
    assert "p" in t.programs
    t.advance(t.now + 0.1)
    assert not t.programs and t.finished[-1].why == "reaped"


def test_a_program_with_a_live_segment_is_never_reaped():
    t = table(reap_after=1)
    arrive(t, "a")
    t.advance(1e6)
    assert "p" in t.programs


def test_beyond_the_cap_the_longest_idle_program_is_forgotten():
    t = table(max_programs=2)
    for program in "xyz":
        run(t, arrive(t, program, program=program), 10)
    assert list(t.programs) == ["y", "z"] and t.finished[-1].why == "forgotten"


def test_an_announced_end_waits_for_the_last_live_segment():
    t = table()
    a = arrive(t, "a")
    assert t.end("p") and "p" in t.programs
    run(t, a, 10)
    assert not t.programs and t.finished[-1].why == "ended"


def test_the_end_of_an_unknown_program_is_counted_not_believed():
    t = table()
    assert not t.end("nobody") and t.counts["unknown_ends"] == 1


def test_an_aborted_last_segment_may_be_sent_again():
    t = table()
    a = arrive(t, "a", final=True)
    t.finish(a, aborted=True)
    assert t.programs["p"].state is State.TOOL_WAIT


def test_a_segment_aborted_in_the_queue_leaves_no_kv_that_counts():
    t = table()
    a = arrive(t, "a")
    t.finish(a, aborted=True)
    assert (a.program.context, a.program.resident, a.program.run.alone) == (0, 0, 0.0)


def test_what_a_retracted_segment_left_in_the_tree_is_its_own_not_shared():
    t = table()
    a = arrive(t, "a")
    view(t, a, 30)
    t.start(a, 70)
    t.requeue(a)
    view(t, a, 100)
    assert a.program.shared == 30


def test_parallel_segments_pay_for_what_their_siblings_have_had():
    t = table()
    a, b = arrive(t, "a"), arrive(t, "b")
    before = view(t, b).alone
    run(t, a, 400)
    assert view(t, b).alone == pytest.approx(before + 400 * t.costs.token(500) + 100 * t.costs.prefill)


def test_a_child_pays_for_its_service_with_its_parents_age():
    t = table()
    parent, child = arrive(t, "a", program="parent"), arrive(t, "b", program="child", parent_id="parent")
    run(t, child, 400)
    assert parent.program.run.alone > 0 and view(t, parent).alone > 400 * t.costs.decode / 2


def test_a_program_that_is_gone_is_told():
    t = table()
    gone = []
    t.gone = lambda program: gone.append(program.id)
    run(t, arrive(t, "a"), 1)
    t.end("p")
    assert gone == ["p"]


def test_an_announced_end_stands_though_the_last_segment_is_aborted():
    t = table()
    a = arrive(t, "a", final=True)
    t.end("p")
    t.finish(a, aborted=True)
    assert not t.programs


def test_a_finished_segment_is_finished_once():
    t = table()
    a = arrive(t, "a")
    t.finish(a)
    t.finish(a)
    assert t.programs["p"].finished_segments == 1


def test_long_segments_demote_and_early_yields_promote_under_mlfq():
    t = table(order="mlfq")
    levels = []
    for rid, tokens in enumerate((200, 300, 10, 10)):
        run(t, arrive(t, str(rid)), tokens)
        levels.append(t.programs["p"].level)
    assert levels == [1, 2, 1, 0]


def test_aging_returns_a_starved_program_of_the_last_queue_to_the_first():
    t = table(order="mlfq", queues=2, aging=3.0)
    t.advance(0, Costs(prefill=1e-9, decode=0.01))
    run(t, arrive(t, "a"), 300)
    b = arrive(t, "b")
    fresh = arrive(t, "c", program="q")
    assert rids(t, (b, 0), (fresh, 0)) == ["c", "b"]
    t.advance(t.now + 60)
    assert rids(t, (b, 0), (fresh, 0)) == ["b", "c"] and b.program.level == 0


def test_cached_prompts_are_shorter_work():
    t = table()
    cold, warm = arrive(t, "cold", program="x"), arrive(t, "warm", program="y")
    t.advance(1.0)
    assert rids(t, (cold, 0), (warm, 90)) == ["warm", "cold"]


def test_time_never_goes_back():
    t = table()
    t.advance(5.0)
    t.advance(4.0)
    assert t.now == 5.0


def test_the_snapshot_is_json_and_names_state_wait_and_tool():
    import json

    t = table()
    run(t, arrive(t, "a", program_class="react", next_tool="search"), 10)
    (row,) = json.loads(json.dumps(t.snapshot()))["programs"]
    assert row == {
        "id": "p", "class": "react", "parent_id": None, "anonymous": False, "state": "TOOL_WAIT", "segments": 1,
        "identity": "", "tools": ["search"], "running_tools": ["search"],
        "attained_tokens": 110, "wait_s": 0.0, "queue_level": 0, "node": "#0", "next_tool": "search",
        "segments_to_come": 1.0, "tokens_to_come": 128, "age_s": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("order", ["fcfs", "hrrn", "mlfq"])
def test_the_configured_order_is_the_one_used(order):
    t = table(order=order, queues=2)
    early = arrive(t, "early", program="x")
    t.advance(1.0)
    late = arrive(t, "late", program="y", final=True)  # nothing follows it: less is left
    early.program.level, late.program.level = 1, 0
    assert (rids(t, (early, 0), (late, 0)) == ["early", "late"]) is (order == "fcfs")


def test_the_program_with_less_left_goes_first():
    t = table()
    for _ in range(20):
        for name, segments in (("short", 1), ("long", 9)):
            for i in range(segments):
                run(t, arrive(t, f"{i}", program=name, program_class=name, final=i == segments - 1), 50)
    long, short = (arrive(t, name, program=name, program_class=name) for name in ("long", "short"))
    assert rids(t, (long, 0), (short, 0)) == ["short", "long"]
    assert long.later.segments == pytest.approx(8, rel=0.2) and short.later.segments < 0.5


def test_declared_structure_says_what_is_left_until_history_does():
    t = table()
    first = arrive(t, "a", structure=CHAIN, node="plan")
    assert (first.output, first.later) == (40, (1, 50, 300))
    for i in range(30):
        run(t, arrive(t, f"x{i}", program=f"x{i}", structure=CHAIN, node="plan"), 80)
        run(t, arrive(t, f"y{i}", program=f"x{i}", node="act", final=True), 600)
    later = arrive(t, "b", program="q", structure=CHAIN, node="plan")
    assert later.output == pytest.approx(80, rel=0.2) and later.later.output == pytest.approx(600, rel=0.2)


@pytest.mark.parametrize(("prediction", "output"), [("declared", 40), ("off", 128), ("learned", 128)])
def test_prediction_can_be_switched(prediction, output):
    t = table(prediction=prediction)
    assert arrive(t, "a", structure=CHAIN, node="plan").output == output
    run(t, arrive(t, "b", program="q", node="plan"), 900)
    assert (arrive(t, "c", program="r", node="plan").output > 128) is (prediction == "learned")


def test_a_structure_is_sent_once_and_referred_to_by_its_digest():
    t = table()
    arrive(t, "a", structure=CHAIN, node="plan")
    assert arrive(t, "b", program="q", structure_ref=digest(CHAIN), node="plan").later == (1, 50, 300)
    arrive(t, "c", program="r", structure_ref="f00", node="act")
    assert t.programs["r"].structure_ref is None and t.counts["unknown_structures"] == 1


def test_a_node_that_was_not_declared_is_counted_and_ignored():
    t = table()
    segment = arrive(t, "a", structure=CHAIN, node="dance")
    assert (segment.declared, segment.node, t.counts["unknown_nodes"]) == (None, "#0", 1)


def test_structures_and_visits_are_bounded(monkeypatch):
    monkeypatch.setattr(structures, "MAX_KEPT", 3)
    t = table()
    for i in range(50):
        one = parse({"nodes": [{"id": f"n{i}", "kind": "segment"}]})
        arrive(t, f"a{i}", program=f"p{i}", structure=one)
        arrive(t, f"b{i}", program="free", node=f"n{i}")  # labels of no structure
    kept = [program.structure_ref in t.structures for program in t.programs.values() if program.structure_ref]
    assert kept == [False] * 47 + [True] * 3 and len(t.programs["free"].visits) == module.MAX_VISITS


def test_a_sub_agent_is_as_old_and_as_overdue_as_its_parent():
    t = table()
    parent = arrive(t, "a", program="parent")
    t.advance(60.0)
    run(t, parent, 50)
    child = arrive(t, "b", program="child", parent_id="parent")
    assert view(t, child).wait == 60.0
    assert child.program.run is parent.program.run and parent.program.run.born == 0.0
    assert child.program.waits.until(t.now) == 0.0  # its own


def test_a_program_is_overdue_once_it_has_waited_its_patience_in_times_of_what_it_takes_alone():
    t = table(patience=3)
    segment = arrive(t, "a", final=True)
    alone = view(t, segment).alone
    t.advance(2.9 * alone)
    assert view(t, segment).late < 1
    t.advance(3.1 * alone)
    assert view(t, segment).late > 1


@pytest.mark.parametrize("parent", ["nobody", "child"])
def test_a_parent_that_is_not_there_lends_no_age(parent):
    t = table()
    t.advance(5.0)
    assert arrive(t, "b", program="child", parent_id=parent).program.run.born == 5.0


def test_a_users_priority_is_a_strict_tier():
    t = table()
    hints = [Hints(program_id=name) for name in "pq"]
    first = t.arrive("first", hints[0], 10, 10, tier=0)
    t.advance(1.0)
    urgent = t.arrive("urgent", hints[1], 90_000, 10_000, tier=-5)
    assert rids(t, (first, 10), (urgent, 0)) == ["urgent", "first"]


def test_prices_follow_the_measured_costs():
    t = table()
    segment = arrive(t, "a")
    cheap = view(t, segment).left
    t.advance(1.0, Costs(*(100 * cost for cost in Costs())))
    assert view(t, segment).left == pytest.approx(100 * cheap)


@pytest.mark.parametrize("now", [float("nan"), float("inf"), -5.0, 2.0])
def test_a_clock_that_steps_back_or_leaves_the_numbers_is_refused_and_counted(now):
    t = table()
    t.advance(10.0)
    t.advance(now)
    assert t.now == 10.0 and t.counts["clock_steps_refused"] == 1


def test_a_retracted_segment_computes_again_what_it_had_generated():
    t = table()
    a = arrive(t, "a")
    t.start(a, 100)
    t.serve(a, 50)
    t.requeue(a)
    seen = view(t, a, 100)
    assert (seen.known, seen.length, seen.retracted) == (150, 150, True)


def test_evicted_kv_of_a_paused_program_no_longer_counts():
    t = table()
    run(t, arrive(t, "a"), 20)
    t.evicted(t.programs["p"], 70)
    t.evicted(t.programs["p"], 90)  # never more
    assert t.programs["p"].resident == 70


def test_several_requests_of_one_segment_visit_its_node_once():
    t = table()
    segments = [arrive(t, str(i), segment=segment, node="choose") for i, segment in enumerate([0, 0, 0, 1])]
    assert [segment.node for segment in segments] == ["choose@1"] * 3 + ["choose@2"]
