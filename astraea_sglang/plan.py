"""What may happen to the waiting queue now? From programs to what orders and the gate see of them, and back to rids."""

from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from itertools import islice, takewhile
from typing import NamedTuple

from astraea_sglang import admit, mlfq, progress
from astraea_sglang.config import Config
from astraea_sglang.costs import Costs
from astraea_sglang.order import Tenure, Waiting, rank
from astraea_sglang.predict import Predictor
from astraea_sglang.program import Program, Segment

MAX_PAUSED = 4096  # programs
LONGEST = 3600.0  # seconds: what is believed of the time that a segment and what follows take alone; it bounds patience
NEW_PRICES = 0.05  # relative change of a cost at which waiting segments are priced again


class Pool(NamedTuple):
    """The engine's size: tokens in its KV pools, host included, and requests in its largest batch."""

    tokens: int
    rows: int = 64


class Plan(NamedTuple):
    """What may happen to the waiting queue now: every rid, next one first, and those that must not start."""

    order: list[str]
    blocked: Set[str]


class Planner:
    """Plans passes over the waiting queue. Between them it keeps prices, so that a view is made once per segment."""

    def __init__(self, config: Config, predictor: Predictor) -> None:
        self._config = config
        self._predictor = predictor
        self._costs = Costs()
        self._pool = Pool(0)
        self._prices = 0  # grows with each change of costs or pool that views must follow
        chosen = config.order, config.admission, config.retention
        self.progress = progress.Progress() if {"progress", "capacity", "progress-ttl"} & {*chosen} else None

    def plan(
        self,
        now: float,
        costs: Costs,
        waiting: Sequence[tuple[Segment, int]],
        running: Collection[Segment],
        paused: Iterable[Program],
        pool: Pool,
    ) -> Plan:
        """Which of the `waiting` segments, each with its resident tokens, may start, in which order?

        `paused` programs come as their last segments ended, latest first.
        """
        self._reprice(costs, pool)
        prices, gated, patience = self._prices, self._config.admission == "working-set", self._config.patience
        views: list[Waiting] = []
        used = admit.WorkingSet()
        for segment, resident in waiting:
            program = segment.program
            view = segment.view if segment.priced == prices else None
            if view is None:
                view = self._view(segment)
            run = program.run
            view.wait = wait = run.waits.seconds + (now - run.waits.since)
            view.alone = alone = run.alone + segment.alone
            view.late = wait / (patience * alone)
            view.started = program.started
            if view.resident != resident:
                view.resident = resident
                if program.segments == 1 and not program.started:
                    program.shared = resident
            if resident and gated:
                used.add(resident, program.program_class, program.shared)
            views.append(view)
        if self._config.order == "plas":
            for view, (segment, _) in zip(views, waiting, strict=True):
                view.attained = segment.program.attained
        elif self._config.order == "mlfq":
            self._age(views, waiting)
        if self.progress is not None:
            self._take_places(now, waiting, running)
        ranked = rank(self._config.order, views)
        order = [view.rid for view in ranked]
        if self.progress is not None and self._config.admission == "capacity":
            held = self._held(now, waiting, running, paused)
            batch, room = [segment.length for segment in running], self._config.theta * pool.tokens
            return Plan(order, self.progress.kept_out(now, ranked, held, room, batch, self._costs))
        if not gated:
            return Plan(order, frozenset())
        idle = True
        for segment in running:
            idle = False
            used.add(segment.length, segment.program.program_class, segment.program.shared)
        for program in self._due_soon(now, paused):
            used.add(program.resident, program.program_class, program.shared)
        return Plan(order, admit.blocked(ranked, used.tokens, self._config.theta * pool.tokens, idle=idle))

    def _reprice(self, costs: Costs, pool: Pool) -> None:
        pairs = zip(costs, self._costs, strict=True)
        if pool != self._pool or any(abs(new - old) > NEW_PRICES * old for new, old in pairs):
            self._costs, self._pool = costs, pool
            self._prices += 1

    def _due_soon(self, now: float, paused: Iterable[Program]) -> Iterator[Program]:
        """Which paused programs' KV will be wanted before the pool could be refilled?

        The longest pause looked at is four refills: what is due soon after a longer one is rare, the walk is not; and
        of those the MAX_PAUSED shortest. Each is looked at anew only after a sixteenth of a refill.
        """
        refill_s = self._costs.prefill * self._pool.tokens
        for program in islice(paused, MAX_PAUSED):
            elapsed = now - (program.idle_since or 0.0)
            if elapsed > 4 * refill_s:
                return
            if now - program.due_seen > refill_s / 16:
                remaining = self._predictor.tool_remaining(program, elapsed)
                program.due = elapsed < refill_s / 2 if remaining is None else remaining < refill_s
                program.due_seen = now
            if program.due or program.pinned:
                yield program

    def _take_places(self, now: float, waiting: Sequence[tuple[Segment, int]], running: Iterable[Segment]) -> None:
        for segment, _ in waiting:
            place = segment.program.tenure
            place.forced = now >= place.deadline
            place.grow(segment.length - segment.program.shared)
        for segment in running:
            place = segment.program.tenure
            place.enter()
            place.grow(segment.length - segment.program.shared)

    def _held(
        self, now: float, waiting: Sequence[tuple[Segment, int]], running: Iterable[Segment], paused: Iterable[Program]
    ) -> list[Tenure]:
        """Which programs are in? Those that run, those that wait and were let in, and paused ones until their time."""
        recent = takewhile(lambda program: now - (program.idle_since or 0.0) <= progress.LONGEST, paused)
        live = {segment.program.key: segment.program for segment in (*(each for each, _ in waiting), *running)}
        idle = (program for program in recent if now <= program.tenure.until)
        return [program.tenure for program in (*live.values(), *idle) if program.tenure.held]

    def _view(self, segment: Segment) -> Waiting:
        """What an order and the gate see of a segment, at the prices of now; what changes comes with each plan."""
        program, costs, later = segment.program, self._costs, segment.later
        output = max(segment.output - segment.generated, 1.0)
        context = segment.length + output / 2
        later_context = context + (later.new + later.output) / 2
        new = max(segment.length - segment.known, 0) + later.new
        tokens = (output, context), (later.output, later_context)
        segment.alone = min(costs.prefill * new + sum(n * costs.token(long) for n, long in tokens), LONGEST)
        view = segment.view = Waiting(
            rid=segment.rid,
            arrived=segment.arrived,
            born=program.run.born,
            tier=segment.tier,
            left=costs.prefill * new + sum(n * costs.token(long, self._share(long)) for n, long in tokens),
            decode=costs.decode * output,
            prefill=costs.prefill,
            length=segment.length,
            known=segment.known,
            reserve=output,
            level=program.level,
            retracted=segment.retracted,
            tenure=program.tenure,
        )
        segment.priced = self._prices
        return view

    def _share(self, context: float) -> float:
        """Which share of a decode step does a row with so much context take up? The scarcer of rows and memory."""
        return min(1.0, max(1 / self._pool.rows, context / self._pool.tokens))

    def _age(self, views: list[Waiting], waiting: Sequence[tuple[Segment, int]]) -> None:
        last, aging = self._config.queues - 1, self._config.aging
        for view, (segment, _) in zip(views, waiting, strict=True):
            program = segment.program
            view.level = program.level = mlfq.after_aging(program.level, view.response_ratio, last, aging)
