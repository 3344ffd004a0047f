"""Progress-TTL: the rules over plain places, then the real table with them before a small engine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from astraea_sglang import progress
from astraea_sglang.config import Config
from astraea_sglang.costs import Costs
from astraea_sglang.hints import Hints
from astraea_sglang.order import BUFFER, Tenure, Waiting, rank
from astraea_sglang.program import Segment
from astraea_sglang.progress import LATEST, LONGEST, ROUNDS, WINDOW, Progress, miss, time_to_live
from astraea_sglang.retain import Choice
from astraea_sglang.table import Pool, ProgramTable
from tests.builders import arrive, run, table
from tests.test_keeper import EASY, after, keeper, pause
from tests.test_storm import Storm

COSTS = Costs()
ALL = {"order": "progress", "admission": "capacity", "retention": "progress-ttl", "theta": 1.0}


def place(tokens=1000, **more) -> Tenure:
    return Tenure(tokens=tokens, **more)


def seg(rid: str, tenure: Tenure, arrived=0.0, length=1000) -> Waiting:
    return Waiting(rid, arrived, 0.0, length=length, tenure=tenure)


def mature(tools: Sequence[float] = (0.1,), *, growth=0.0, tenure=2, generated=0.0) -> Progress:
    """One that has seen WINDOW tools, and as many segments, one a second."""
    p = Progress()
    p._tools.extend([*tools] * math.ceil(WINDOW / len(tools)))
    p._rounds.extend(progress._Round(float(i), 0, 100, 1) for i in range(WINDOW))
    p.tenure, p._growth, p._generated = tenure, growth, generated
    return p


def out(p: Progress, queue: list[Waiting], held: Sequence[Tenure] = (), *, room=10_000.0, batch=(500,), now=0.0):
    return p.kept_out(now, queue, held, room, [*batch], COSTS)


# --- time to live ---


def test_before_enough_tools_were_seen_nobody_keeps_a_place():
    assert time_to_live([0.1] * (WINDOW - 1), 60.0) == 0.0
    assert time_to_live([0.1] * WINDOW, 60.0) > 0.1


def test_a_tool_that_takes_longer_than_a_refill_is_not_waited_for():
    assert time_to_live([20.0, 30.0] * 50, 1.0) == 0.0


def test_a_refill_slows_what_decodes_beside_it():
    assert miss(1000, Costs(prefill=1e-3)) == pytest.approx(1.85)


@given(st.lists(st.floats(0, 1e6), min_size=WINDOW, max_size=WINDOW), st.floats(0, 1e6))
def test_a_time_to_live_is_never_longer_than_the_refill_that_it_saves(tools, refill):
    assert 0 <= time_to_live(tools, refill) <= min(LONGEST, refill) * (1 + 1e-9)


# --- order ---


def test_who_is_in_goes_before_who_is_forced_in_before_who_ran_before_who_is_new():
    queue = [
        seg("new", place(), 1), seg("older", place(ended=5.0), 2), seg("latest", place(ended=9.0), 3),
        seg("yielded", place(ended=10.0, yielded=True), 0), seg("forced", place(forced=True), 4),
        seg("in", place(held=True), 6), seg("in first", place(held=True), 5),
    ]  # fmt: skip
    ranked = [segment.rid for segment in rank("progress", queue)]
    assert ranked == ["in first", "in", "forced", "latest", "older", "yielded", "new"]


# --- who is let in ---


def test_who_fits_is_let_in_and_takes_its_room():
    queue = [seg("a", place(6000)), seg("b", place(6000)), seg("c", place(3000))]
    assert out(Progress(), queue) == {"b"}
    assert [segment.tenure and segment.tenure.held for segment in queue] == [True, False, True]


def test_who_is_in_is_never_kept_out_whatever_there_is_room_for():
    held = place(99_999, held=True)
    assert out(mature(), [seg("in", held)], [held]) == set()


def test_room_is_kept_for_what_those_in_will_grow_to_in_their_tenure():
    held = place(1000, held=True, rounds=1)
    reserve = 3 * 1000  # two segments of the newcomer, one of the other
    for room, kept in ((2000 + reserve, set()), (1999 + reserve, {"new"})):
        assert out(mature(growth=1000.0), [seg("new", place(1000))], [held], room=room) == kept


def test_a_batch_that_gains_more_than_the_refill_costs_needs_no_room_to_grow():
    held = place(1000, held=True, rounds=2)
    fresh = {"growth": 1e6, "tenure": 2}
    assert out(mature(**fresh, generated=10_000.0), [seg("new", place(1000))], [held]) == set()
    assert out(mature(**fresh, generated=1.0), [seg("new", place(1000))], [held]) == {"new"}
    assert out(mature(**fresh, generated=10_000.0), [seg("new", place(1000))], [held], room=1999.0) == {"new"}


def test_a_tenure_that_would_be_cut_short_weighs_against_a_larger_batch():
    for rounds, kept in ((1, {"new"}), (2, set())):
        held = place(1000, held=True, rounds=rounds)
        assert out(mature(growth=3000.0, generated=10.0), [seg("new", place(1000))], [held], room=7500.0) == kept


def test_a_paused_program_makes_room_only_once_its_tenure_is_over():
    for rounds, kept in ((1, {"new"}), (2, set())):
        held = place(9500, held=True, rounds=rounds, until=99.0)
        assert out(mature(), [seg("new", place())], [held]) == kept
        assert held.held is bool(kept)


def test_a_program_that_runs_makes_no_room():
    held = place(9500, held=True, rounds=99)
    assert out(mature(), [seg("new", place())], [held]) == {"new"} and held.held


def test_the_program_that_has_been_in_longest_makes_room_first():
    older, younger = (place(5000, held=True, rounds=rounds, until=99.0) for rounds in (9, 2))
    assert out(mature(), [seg("new", place())], [younger, older]) == set()
    assert (older.held, younger.held) == (False, True)


def test_where_nothing_runs_the_first_is_let_in_whatever_its_size():
    queue = [seg("a", place(99_999)), seg("b", place(99_999))]
    assert out(Progress(), queue, batch=()) == {"b"}


def test_who_is_kept_out_is_let_in_at_its_deadline():
    p, newcomer = mature(), place(99_999)
    assert out(p, [seg("big", newcomer)], now=7.0) == {"big"}
    assert newcomer.deadline == 7 + progress.SOONEST  # little is before it
    newcomer.forced = True
    assert out(p, [seg("big", newcomer)]) == set()
    assert (newcomer.held, newcomer.deadline, newcomer.forced) == (True, math.inf, False)


def test_a_deadline_grows_with_the_work_ahead_within_bounds():
    crowd = [place(10, held=True) for _ in range(20)]
    p, newcomer = mature(tenure=1), place(99_999)
    out(p, [seg("big", newcomer)], crowd)
    assert newcomer.deadline == pytest.approx(3 * 20 * 1.0)
    first = place(99_999)
    out(Progress(), [seg("big", first)])
    assert first.deadline == LATEST


# --- what is heard of segments and tools ---


def rounds(t: ProgramTable, count: int, program="p", resident=10**6) -> Tenure:
    for i in range(count):
        segment = arrive(t, f"{program}{i}-{t.now}", program=program)
        t.plan([(segment, resident)], Pool(10_000))
        run(t, segment, 10)
    return t.programs[program].tenure


def test_rounds_that_found_their_context_count():
    t = table(**ALL)
    assert rounds(t, 3).rounds == 3
    assert rounds(t, 3, "q", resident=0).rounds == 1  # its first had none to find


def test_a_place_is_lost_when_its_time_to_live_runs_out():
    for seconds, kept in ((0.4, True), (0.6, False)):
        t = table(**ALL)
        tenure = rounds(t, 6)
        tenure.until = t.now + 0.5
        t.advance(t.now + seconds)
        arrive(t, "back", program="p")
        assert (tenure.held, tenure.streak) == ((True, 6) if kept else (False, 0))


def test_who_has_been_in_for_the_longest_tenure_yields_once_while_others_wait():
    t = table(**ALL)
    tenure = rounds(t, ROUNDS)
    assert not tenure.yielded
    assert t._progress is not None
    t._progress._crowded = True
    t._progress.paused(tenure, t.now, 100, t.costs)
    assert tenure.yielded and tenure.until == t.now
    tenure.held = False
    tenure.enter()
    assert not tenure.yielded


def test_without_it_nothing_is_kept():
    t = table()
    assert rounds(t, 3) == Tenure() and t._progress is None


def test_a_lock_ends_with_the_time_to_live():
    k = keeper(retention="progress-ttl", quota=1.0)
    program = pause(k)
    assert k.holdings["p"].choice is Choice.DISCARD  # no tools were seen yet
    program.tenure.until = k.now + 0.3
    k.paused(program)
    assert k.holdings["p"].choice is Choice.PRESERVE and k.leases.tokens == 1000
    after(k, 0.31, EASY)
    assert k.leases.tokens == 0 and ("free", ord("p")) not in k._tree.done  # left to SGLang's LRU


def test_the_levers_are_settings():
    assert Config(order="progress", admission="capacity", retention="progress-ttl").admission == "capacity"


# --- the real table, and a small engine that never has room for all ---


POOL = Pool(6000, 3)


class Body(NamedTuple):
    """A program: when it comes (s), prompt tokens of its first segment and those that follow, and tools (s)."""

    at: float
    first: int
    more: int
    tools: tuple[float, ...]


@dataclass
class Engine:
    """Runs up to `rows` segments at a time, a second each; every program finds what it computed before."""

    bodies: Sequence[Body]
    rows: int = 3
    pool: Pool = POOL
    waited: dict[str, float] = field(default_factory=dict)  # seconds, by program and segment
    finished: int = 0

    def run(self, until: float) -> None:
        t = table(**ALL)
        coming = [(body.at, number, 0) for number, body in enumerate(self.bodies)]
        waiting: dict[str, tuple[Segment, int]] = {}
        running: list[tuple[float, Segment, int, int]] = []
        where: dict[str, tuple[int, int]] = {}
        while t.now < until and self.finished < len(self.bodies):
            t.advance(t.now + 0.25)
            for end, segment, number, index in [each for each in running if each[0] <= t.now]:
                running.remove((end, segment, number, index))
                t.serve(segment, 20)
                t.finish(segment)
                if index < len(self.bodies[number].tools):
                    coming.append((t.now + self.bodies[number].tools[index], number, index + 1))
                else:
                    self.finished += 1
            for due, number, index in sorted(each for each in coming if each[0] <= t.now):
                coming.remove((due, number, index))
                body, rid = self.bodies[number], f"{number}.{index}"
                hints = Hints(program_id=f"p{number}", final=index == len(body.tools))
                before = t.programs[f"p{number}"].tenure if f"p{number}" in t.programs else None
                held, late = (before.held, t.now > before.until) if before else (False, False)
                segment = t.arrive(rid, hints, body.first + index * (body.more + 20), 64)
                assert before is None or before.held == (held and not late)
                waiting[rid], where[rid] = (segment, segment.known), (number, index)
            places = [(program, program.tenure.held, program.tenure.rounds) for program in t.programs.values()]
            plan = t.plan([*waiting.values()], self.pool)
            tenure = t._progress.tenure if t._progress else 0
            for program, was, served in places:
                if was and not program.tenure.held:  # pushed out: only while it is paused, and after its tenure
                    assert not program.live and served >= tenure
            for rid in [rid for rid in plan.order if rid not in plan.blocked][: self.rows - len(running)]:
                segment, found = waiting.pop(rid)
                self.waited[rid] = t.now - segment.arrived
                t.start(segment, segment.length - found)
                running.append((t.now + 1.0, segment, *where[rid]))


bodies = st.lists(
    st.builds(
        Body, st.floats(0, 20), st.integers(10, 5000), st.integers(1, 300),
        st.lists(st.floats(0, 12), max_size=8).map(tuple),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(bodies, st.sampled_from([3, 10, WINDOW]))
def test_nobody_waits_for_ever_and_every_tenure_is_honoured(bodies, window):
    with patch.object(progress, "WINDOW", window):
        engine = Engine(bodies)
        engine.run(until=3000)
    assert engine.finished == len(bodies)
    assert max(engine.waited.values()) <= LATEST + sum(
        len(body.tools) + 1 for body in bodies
    )  # then all that is before it


def test_a_program_too_large_to_fit_beside_a_crowd_that_never_ends_is_forced_in():
    crowd = [Body(2.0 * i, 1500, 10, (0.1,) * 5) for i in range(100)]
    with patch.object(progress, "WINDOW", 10):
        engine = Engine([Body(30.0, 5500, 10, ()), *crowd])
        engine.run(until=200)
    assert progress.SOONEST <= engine.waited["0.0"] < progress.SOONEST + 15
    assert max(wait for rid, wait in engine.waited.items() if rid != "0.0") < progress.SOONEST


class ProgressStorm(Storm):
    order = "progress"

    def __init__(self):
        super().__init__()
        self.tables = [table(**ALL, reap_after=50, max_programs=4) for _ in range(2)]


def test_two_tables_fed_alike_stay_alike_under_progress_ttl():
    with patch.object(progress, "WINDOW", 3):
        run_state_machine_as_test(
            ProgressStorm, settings=settings(max_examples=40, stateful_step_count=40, deadline=None)
        )


def test_what_a_program_is_taken_to_hold_is_its_own_kv_and_a_little_more():
    t = table(**ALL)
    segment = arrive(t, "a")
    t.plan([(segment, 0)], Pool(10_000))
    assert segment.program.tenure.tokens == 100 + BUFFER
