"""What does the engine know of its programs? The only mutable owner of program state; its clock is passed in."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Set
from typing import Any, NamedTuple

from astraea_sglang import admit, mlfq
from astraea_sglang.config import Config
from astraea_sglang.hints import Hints
from astraea_sglang.order import Waiting, rank
from astraea_sglang.predict import Costs, OutputLengths, ToolTimes
from astraea_sglang.program import Program, Segment

FINISHED_KEPT = 256  # programs


class Finished(NamedTuple):
    """A program that is over: how it went, in seconds and tokens; `why` is final, ended, reaped or forgotten."""

    id: str
    program_class: str
    why: str
    jct: float
    wait: float
    segments: int
    attained: int


class Plan(NamedTuple):
    """What may happen to the waiting queue now: every rid, next one first, and those that must not start."""

    order: list[str]
    blocked: Set[str]


class ProgramTable:
    """Programs and their live segments. Equal calls in equal order give equal tables on every tensor-parallel rank."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.now = 0.0
        self.costs = Costs()
        self.counts: Counter[str] = Counter()
        self.programs: dict[str, Program] = {}
        self.finished: deque[Finished] = deque(maxlen=FINISHED_KEPT)
        self._idle: dict[str, Program] = {}  # in the order of idle_since, so that reaping looks at the first only
        self._running: dict[str, Segment] = {}
        self._lengths = OutputLengths()
        self._tools = ToolTimes()

    def advance(self, now: float, costs: Costs | None = None) -> None:
        """The time is `now` (it never goes back), tokens cost `costs`; programs idle beyond `reap_after` are reaped."""
        self.now = max(self.now, now)
        self.costs = costs or self.costs
        while self._idle:
            program = next(iter(self._idle.values()))
            if self.now - (program.idle_since or 0.0) <= self.config.reap_after:
                break
            self._remove(program, "reaped")

    def arrive(self, rid: str, hints: Hints, prompt_tokens: int, max_new_tokens: int) -> Segment:
        """A segment enters the queue; its program appears, or leaves TOOL_WAIT. A reused rid names a new segment."""
        program = self.programs.get(hints.program_id or "") or self._open(rid, hints)
        if self._idle.pop(program.key, None) and program.idle_since is not None:
            self._tools.observe(program.program_class, program.next_tool or "", self.now - program.idle_since)
        segment = Segment(rid, program, hints, self.now, prompt_tokens, max_new_tokens)
        program.live[rid] = segment
        program.segments += 1
        if hints.final or program.anonymous:
            program.closing = program.closing or "final"
        program.next_tool, program.expected_tool_s = hints.next_tool, hints.expected_tool_s
        program.idle_since = None
        self._account_wait(program)
        return segment

    def start(self, segment: Segment, prefilled: int) -> None:
        """A segment is in the batch that runs now and computes `prefilled` tokens of its prompt there."""
        program = segment.program
        program.running += not segment.running
        segment.running = True
        self._running[segment.rid] = segment
        program.prefilled += prefilled
        self._account_wait(program)

    def requeue(self, segment: Segment) -> None:
        """A running segment was retracted or preempted: it waits again, what it generated is kept."""
        segment.program.running -= segment.running
        segment.running = False
        self._running.pop(segment.rid, None)
        self._account_wait(segment.program)

    def serve(self, segment: Segment, generated: int) -> None:
        """A segment has generated `generated` tokens so far."""
        segment.generated = generated

    def finish(self, segment: Segment, *, aborted: bool = False) -> None:
        """A segment is over. Its program waits for a tool, or is done; an aborted last segment may be sent again."""
        program = segment.program
        if program.live.pop(segment.rid, None) is not segment:
            return
        program.running -= segment.running
        self._running.pop(segment.rid, None)
        program.context = segment.prompt_tokens + segment.generated
        program.finished_segments += 1
        program.generated += segment.generated
        if aborted:
            self.counts["aborted_segments"] += 1
            if segment.hints.final and program.closing == "final":
                program.closing = None
        else:
            self._lengths.observe(program.program_class, segment.generated)
            yielded = not (program.closing and not program.live)
            program.level = mlfq.after_segment(program.level, segment.generated, yielded, self.config.thresholds)
        self._account_wait(program)
        if not program.live:
            self._settle(program)

    def end(self, program_id: str) -> bool:
        """A program is announced to be over; False if unknown. With live segments it ends with the last of them."""
        program = self.programs.get(program_id)
        if program is None:
            self.counts["unknown_ends"] += 1
            return False
        program.closing = "ended"
        if not program.live:
            self._settle(program)
        return True

    def plan(self, waiting: Iterable[tuple[Segment, int]], pool_tokens: int) -> Plan:
        """Which of these waiting segments may start, in which order? From pairs of a segment and its resident tokens.

        `pool_tokens` is what the KV pools hold, device and host. Under `mlfq` programs age first, as Astraea's
        Algorithm 1 has it; under `working-set` cold segments may have to wait (see admit.py).
        """
        segments: dict[str, Segment] = {}
        outputs: dict[str, float] = {}
        views: list[Waiting] = []
        for segment, resident in waiting:
            segments[segment.rid] = segment
            if segment.program.segments == 1:
                segment.program.shared = resident
            segment.resident = resident
            outputs[segment.rid] = output = self._output(segment)
            views.append(self._view(segment, output))
        ranked = rank(self.config.order, views)
        if self.config.admission == "none":
            return Plan([view.rid for view in ranked], frozenset())
        candidates = []
        for view in ranked:
            segment, overdue = segments[view.rid], view.response_ratio > admit.OVERDUE
            candidates.append(admit.Candidate(view.rid, segment.length, segment.resident, outputs[view.rid], overdue))
        parts = [(s.length, s.program) for s in self._running.values()]
        parts += [(s.resident, s.program) for s in segments.values()]
        parts += [(p.context, p) for p in self._due_soon(pool_tokens)]
        room = self.config.theta * pool_tokens
        blocked = admit.blocked(candidates, admit.working_set(parts), room, idle=not self._running)
        return Plan([c.rid for c in candidates], blocked)

    def snapshot(self) -> dict[str, Any]:
        """What would a person see? Live programs, those over lately, counters; JSON-ready, in seconds and tokens."""
        return {
            "order": self.config.order,
            "programs": [self._row(program) for program in self.programs.values()],
            "finished": [finished._asdict() for finished in self.finished],
            "costs": self.costs._asdict(),
            "counts": dict(sorted(self.counts.items())),
        }

    def _open(self, rid: str, hints: Hints) -> Program:
        if len(self.programs) >= self.config.max_programs and self._idle:
            self._remove(next(iter(self._idle.values())), "forgotten")
        program = Program(
            id=hints.program_id or rid,
            program_class=hints.program_class,
            arrived=self.now,
            parent_id=hints.parent_id,
            anonymous=hints.program_id is None,
        )
        self.programs[program.key] = program
        return program

    def _settle(self, program: Program) -> None:
        if program.closing:
            self._remove(program, program.closing)
        else:
            program.idle_since = self.now
            self._idle[program.key] = program

    def _remove(self, program: Program, why: str) -> None:
        del self.programs[program.key]
        self._idle.pop(program.key, None)
        self.counts[f"{why}_programs"] += 1
        if not program.anonymous:
            jct, wait = self.now - program.arrived, program.wait(self.now)
            self.finished.append(
                Finished(program.id, program.program_class, why, jct, wait, program.segments, program.attained)
            )

    def _account_wait(self, program: Program) -> None:
        waiting = len(program.live) > program.running
        if waiting and program.waiting_since is None:
            program.waiting_since = self.now
        elif not waiting and program.waiting_since is not None:
            program.waited = program.wait(self.now)
            program.waiting_since = None

    def _due_soon(self, pool_tokens: int) -> Iterator[Program]:
        """Which paused programs' KV will be wanted before the pool could be refilled?

        The longest pause looked at is four refills: what is due soon after a longer one is rare, the walk is not.
        """
        refill_s = self.costs.prefill * pool_tokens
        for program in reversed(self._idle.values()):
            elapsed = self.now - (program.idle_since or 0.0)
            if elapsed > 4 * refill_s:
                return
            remaining = self._tools.remaining(program.program_class, program.next_tool or "", elapsed)
            if remaining is None and program.expected_tool_s is not None:
                remaining = max(0.0, program.expected_tool_s - elapsed)
            if elapsed < refill_s / 2 if remaining is None else remaining < refill_s:
                yield program

    def _output(self, segment: Segment) -> float:
        program = segment.program
        predicted = self._lengths.predict(
            program.program_class, program.finished_segments, program.generated, segment.max_new_tokens
        )
        return max(predicted - segment.generated, 1.0)

    def _view(self, segment: Segment, output: float) -> Waiting:
        program = segment.program
        work = self.costs.work(segment.length - segment.resident, output)
        view = Waiting(segment.rid, segment.arrived, program.arrived, program.wait(self.now), work, program.level)
        if self.config.order != "mlfq":
            return view
        program.level = mlfq.after_aging(program.level, view.response_ratio, self.config.queues - 1, self.config.aging)
        return view._replace(level=program.level)

    def _row(self, program: Program) -> dict[str, Any]:
        return {
            "id": program.id,
            "class": program.program_class,
            "parent_id": program.parent_id,
            "anonymous": program.anonymous,
            "state": program.state,
            "segments": program.segments,
            "attained_tokens": program.attained,
            "wait_s": round(program.wait(self.now), 3),
            "queue_level": program.level,
            "next_tool": program.next_tool,
            "age_s": round(self.now - program.arrived, 3),
        }
