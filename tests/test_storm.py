"""Two program tables fed the same events, whatever comes: what tensor-parallel ranks rely on."""

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from astraea_sglang.costs import Costs
from astraea_sglang.hints import Hints
from astraea_sglang.table import Pool
from tests.builders import CHAIN, table


class Storm(RuleBasedStateMachine):
    """Two tables fed the same events: they agree in everything, their books balance, their numbers stay numbers."""

    order = "hrrn"

    def __init__(self):
        super().__init__()
        self.tables = [table(order=self.order, reap_after=50, max_programs=4) for _ in range(2)]
        self.segments: dict[str, list] = {}
        self.count = 0

    @rule(
        program=st.sampled_from(["p", "q", "r", "s", "t", None]),
        final=st.booleans(),
        node=st.sampled_from([None, "plan", "act", "dance"]),
        structure=st.sampled_from([None, CHAIN]),
        parent_id=st.sampled_from([None, "p", "q"]),
        tool=st.sampled_from([None, "search"]),
        expects=st.sampled_from([None, 0.0, 1e6]),
        tier=st.integers(-2, 2),
        prompt=st.sampled_from([0, 1, 100, 10**6]),
    )
    def arrive(self, program, final, node, structure, parent_id, tool, expects, tier, prompt):
        self.count += 1
        rid = f"r{self.count}"
        hints = Hints(program, "", None, tool, expects, final, parent_id=parent_id, structure=structure, node=node)
        self.segments[rid] = [t.arrive(rid, hints, prompt, 512, tier=tier) for t in self.tables]

    @precondition(lambda self: self.segments)
    @rule(
        data=st.data(),
        what=st.sampled_from(["start", "requeue", "serve", "finish", "abort"]),
        tokens=st.integers(0, 900),
    )
    def step(self, data, what, tokens):
        rid = data.draw(st.sampled_from(sorted(self.segments)))
        for t, segment in zip(self.tables, self.segments[rid], strict=True):
            if what == "start":
                t.start(segment, tokens)
            elif what == "requeue":
                t.requeue(segment)
            elif what == "serve":
                t.serve(segment, max(segment.generated, tokens))
            else:
                t.finish(segment, aborted=what == "abort")
        if what in ("finish", "abort"):
            del self.segments[rid]

    @rule(seconds=st.floats(-9, 100), costs=st.none() | st.lists(st.floats(1e-9, 1e3), min_size=5, max_size=5))
    def advance(self, seconds, costs):
        for t in self.tables:
            t.advance(t.now + seconds, costs and Costs(*costs))

    @rule(program=st.sampled_from(["p", "q", "r"]), resident=st.integers(0, 200))
    def evict(self, program, resident):
        for t in self.tables:
            if program in t.programs:
                t.evicted(t.programs[program], resident)

    @rule(program=st.sampled_from(["p", "q", "r", "zzz"]))
    def end(self, program):
        for t in self.tables:
            t.end(program)

    @invariant()
    def tables_agree(self):
        one, two = self.tables
        assert one.snapshot() == two.snapshot()
        queues = [[(s[i], 50) for _, s in sorted(self.segments.items()) if not s[i].running] for i in (0, 1)]
        assert one.plan(queues[0], Pool(5000)) == two.plan(queues[1][::-1], Pool(5000))
        for segment, _ in queues[0]:
            seen = segment.view
            assert all(math.isfinite(n) and n >= 0 for n in (seen.wait, seen.left, seen.alone, seen.reserve))
            assert all(math.isfinite(n) and n >= 0 for n in segment.later)

    @invariant()
    def books_balance(self):
        t = self.tables[0]
        live = {segment.rid for program in t.programs.values() for segment in program.live.values()}
        assert live == set(self.segments)
        for program in t.programs.values():
            assert program.running == sum(s.running for s in program.live.values())
            assert 0 <= program.waits.until(t.now) <= t.now - program.arrived + 1e-9
            assert (program.idle_since is None) == bool(program.live)
        idle = [p for p in t.programs.values() if not p.live]
        assert len(idle) <= t.config.max_programs


class PaperStorm(Storm):
    order = "mlfq"


for storm in (Storm, PaperStorm):
    storm.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
test_two_tables_fed_alike_stay_alike_through_any_storm = Storm.TestCase
test_two_tables_fed_alike_stay_alike_under_the_papers_order = PaperStorm.TestCase
