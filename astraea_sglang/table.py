"""What does the engine know of its programs? The only mutable owner of program state; its clock is passed in."""

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from astraea_sglang import mlfq
from astraea_sglang.config import Config
from astraea_sglang.costs import Costs
from astraea_sglang.hints import Hints
from astraea_sglang.history import position, visit
from astraea_sglang.plan import Plan, Planner, Pool
from astraea_sglang.predict import Predictor
from astraea_sglang.program import Program, Run, Segment
from astraea_sglang.structure import ProgramStructure, Structures

FINISHED_KEPT = 256  # programs
MAX_VISITS = 16  # declared nodes of a program whose segments are counted


class Finished(NamedTuple):
    """A program that is over: how it went, in seconds and tokens; `why` is final, ended, reaped or forgotten."""

    id: str
    program_class: str
    why: str
    jct: float
    wait: float
    segments: int
    attained: int


class ProgramTable:
    """Programs and their live segments. Equal calls in equal order give equal tables on every tensor-parallel rank."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.gone: Callable[[Program], None] = lambda program: None  # hears of each program that is no longer known
        self.now = 0.0
        self.costs = Costs()
        self.counts: Counter[str] = Counter()
        self.programs: dict[str, Program] = {}
        self.finished: deque[Finished] = deque(maxlen=FINISHED_KEPT)
        self.predictor = Predictor(config.prediction)
        self._idle: dict[str, Program] = {}  # in the order of idle_since, so that reaping looks at the first only
        self._running: dict[str, Segment] = {}
        self.structures = Structures()
        self._planner = Planner(config, self.predictor)
        self._progress = self._planner.progress

    def advance(self, now: float, costs: Costs | None = None) -> None:
        """The time is `now` (it never goes back), tokens cost `costs`; programs idle beyond `reap_after` are reaped."""
        if not math.isfinite(now) or now < self.now - 1:
            self.counts["clock_steps_refused"] += 1
        else:
            self.now = max(self.now, now)
        self.costs = costs or self.costs
        while self._idle:
            program = next(iter(self._idle.values()))
            if self.now - (program.idle_since or 0.0) <= self.config.reap_after:
                break
            self._remove(program, "reaped")

    def arrive(self, rid: str, hints: Hints, prompt_tokens: int, max_new_tokens: int, *, tier: int = 0) -> Segment:
        """A segment enters the queue; its program appears, or leaves TOOL_WAIT. A reused rid names a new segment."""
        program = self.programs.get(hints.program_id or "") or self._open(rid, hints, prompt_tokens)
        if self._idle.pop(program.key, None) and program.idle_since is not None:
            self.predictor.returned(program, self.now - program.idle_since)
            if self._progress is not None:
                self._progress.returned(program.tenure, self.now, self.now - program.idle_since)
        before = program.node
        structure = self._structure(program, hints)
        declared = self._declared(program, hints.node, structure)
        node = visit(declared, program.visits.get(declared, 1)) if declared else position(program.segments)
        known = min(program.context, prompt_tokens)
        segment = Segment(rid, program, hints, declared, node, self.now, prompt_tokens, max_new_tokens, tier, known)
        program.live[rid] = segment
        program.segments += 1
        program.node = node
        if hints.final or program.anonymous:
            program.closing = program.closing or "final"
        program.next_tool, program.expected_tool_s = hints.next_tool, hints.expected_tool_s
        program.idle_since = None
        segment.output, segment.later = self.predictor.arrived(segment, before, structure)
        program.later = segment.later
        self._account_wait(program)
        return segment

    def start(self, segment: Segment, prefilled: int) -> None:
        """A segment is in the batch that runs now and computes `prefilled` tokens of its prompt there."""
        program = segment.program
        program.running += not segment.running
        segment.running = True
        self._running[segment.rid] = segment
        program.prefilled += prefilled
        program.started = True
        self._account_wait(program)

    def requeue(self, segment: Segment) -> None:
        """A running segment was retracted or preempted: it waits again, what it generated is kept."""
        segment.program.running -= segment.running
        segment.running = False
        segment.retracted = True
        segment.known = segment.length
        segment.priced = -1
        self._running.pop(segment.rid, None)
        self._account_wait(segment.program)

    def serve(self, segment: Segment, generated: int) -> None:
        """A segment has generated `generated` tokens so far."""
        segment.program.generating += generated - segment.generated
        segment.generated = generated

    def finish(self, segment: Segment, *, aborted: bool = False) -> None:
        """A segment is over. Its program waits for a tool, or is done; an aborted last segment may be sent again."""
        program = segment.program
        if program.live.pop(segment.rid, None) is not segment:
            return
        program.running -= segment.running
        self._running.pop(segment.rid, None)
        if segment.running:  # else nothing of it was computed
            program.run.alone += self._alone(segment)
            program.context = program.resident = segment.length
        program.generating -= segment.generated
        program.finished_segments += 1
        program.generated += segment.generated
        if aborted:
            self.counts["aborted_segments"] += 1
            if segment.hints.final and program.closing == "final":
                program.closing = None
        else:
            self.predictor.finished(segment)
            yielded = not (program.closing and not program.live)
            program.level = mlfq.after_segment(program.level, segment.generated, yielded, self.config.thresholds)
            if self._progress is not None:
                self._progress.finished(self.now, segment)
        self._account_wait(program)
        if not program.live:
            self._settle(program)

    def evicted(self, program: Program, resident: int) -> None:
        """Of a program's context only the first `resident` tokens are left in the radix tree."""
        program.resident = min(program.resident, resident)

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

    def plan(self, waiting: Sequence[tuple[Segment, int]], pool: Pool) -> Plan:
        """Which of these waiting segments may start, in which order? Each comes with its resident tokens."""
        return self._planner.plan(
            self.now, self.costs, waiting, self._running.values(), reversed(self._idle.values()), pool
        )

    def snapshot(self) -> dict[str, Any]:
        """What would a person see? Live programs, those over lately, counters; JSON-ready, in seconds and tokens."""
        return {
            "order": self.config.order,
            "programs": [self._row(program) for program in self.programs.values()],
            "finished": [finished._asdict() for finished in self.finished],
            "costs": self.costs._asdict(),
            "counts": dict(sorted(self.counts.items())),
        }

    def _open(self, rid: str, hints: Hints, prompt_tokens: int) -> Program:
        if len(self.programs) >= self.config.max_programs and self._idle:
            self._remove(next(iter(self._idle.values())), "forgotten")
        parent = self.programs.get(hints.parent_id or "")
        program = Program(
            id=hints.program_id or rid,
            program_class=hints.program_class,
            arrived=self.now,
            run=parent.run if parent else Run(self.now),
            parent_id=hints.parent_id,
            anonymous=hints.program_id is None,
            first_prompt=prompt_tokens,
        )
        self.programs[program.key] = program
        return program

    def _structure(self, program: Program, hints: Hints) -> ProgramStructure | None:
        """Which structure does a segment's program have? One that the engine does not know is counted and ignored."""
        if hints.structure is not None:
            program.structure_ref = self.structures.add(hints.structure, hints.structure_ref)
        elif hints.structure_ref is not None:
            program.structure_ref = hints.structure_ref if hints.structure_ref in self.structures else None
            self.counts["unknown_structures"] += program.structure_ref is None
        return self.structures.get(program.structure_ref) if program.structure_ref is not None else None

    def _declared(self, program: Program, node: str | None, structure: ProgramStructure | None) -> str | None:
        """At which declared node is a segment that arrives now? One that was not declared is counted and ignored."""
        visits = program.visits
        if node is not None and structure is not None and not structure.has_segment(node):
            self.counts["unknown_nodes"] += 1
            return None
        if node is not None and (node in visits or len(visits) < MAX_VISITS):
            visits[node] = visits.get(node, 0) + 1
        return node

    def _settle(self, program: Program) -> None:
        if program.closing:
            self._remove(program, program.closing)
        else:
            program.idle_since = self.now
            program.due_seen = float("-inf")
            if self._progress is not None:
                private = max(0, program.context - program.shared)
                self._progress.paused(program.tenure, self.now, private, self.costs)
            self._idle[program.key] = program

    def _remove(self, program: Program, why: str) -> None:
        del self.programs[program.key]
        self._idle.pop(program.key, None)
        self.counts[f"{why}_programs"] += 1
        if why != "forgotten":
            self.predictor.ended(program)
        self.gone(program)
        if not program.anonymous:
            jct, wait = self.now - program.arrived, program.waits.until(self.now)
            self.finished.append(
                Finished(program.id, program.program_class, why, jct, wait, program.segments, program.attained)
            )

    def _account_wait(self, program: Program) -> None:
        more = len(program.live) - program.running - program.waits.segments
        if more:
            program.waits.change(more, self.now)
            program.run.waits.change(more, self.now)

    def _alone(self, segment: Segment) -> float:
        """How many seconds would a finished segment have taken alone, with nothing evicted?"""
        new = max(segment.prompt_tokens - segment.known, 0)
        return self.costs.prefill * new + segment.generated * self.costs.token(segment.length)

    def _row(self, program: Program) -> dict[str, Any]:
        return {
            "id": program.id,
            "class": program.program_class,
            "parent_id": program.parent_id,
            "anonymous": program.anonymous,
            "state": program.state,
            "segments": program.segments,
            "attained_tokens": program.attained,
            "wait_s": round(program.waits.until(self.now), 3),
            "queue_level": program.level,
            "node": program.node,
            "next_tool": program.next_tool,
            "segments_to_come": round(program.later.segments, 1),
            "tokens_to_come": round(program.later.output),
            "age_s": round(self.now - program.arrived, 3),
        }
