"""What does the engine know of its programs? The only mutable owner of program state; its clock is passed in."""

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from astraea_sglang import mlfq, snapshot
from astraea_sglang.beginnings import Prompt
from astraea_sglang.config import Config
from astraea_sglang.costs import Costs
from astraea_sglang.hints import Hints
from astraea_sglang.history import position, visit
from astraea_sglang.nameless import NAMELESS, Nameless
from astraea_sglang.plan import Plan, Planner, Pool
from astraea_sglang.predict import Predictor
from astraea_sglang.program import Program, Run, Segment, program_key
from astraea_sglang.structure import ProgramStructure, Structures
from astraea_sglang.toolcalls import ANSWERS, joined, parts

FINISHED_KEPT = 256  # programs
MAX_VISITS = 16  # declared nodes of a program whose segments are counted


class ProgramTable:
    """Programs and their live segments. Equal calls in equal order give equal tables on every tensor-parallel rank."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.gone: Callable[[Program], None] = lambda program: None  # hears of each program that is no longer known
        self.now = 0.0
        self.costs = Costs()
        self.counts: Counter[str] = Counter()
        self.programs: dict[str, Program] = {}
        self.finished: deque[snapshot.Finished] = deque(maxlen=FINISHED_KEPT)
        self.predictor = Predictor(config.prediction)
        self.nameless = Nameless(config.recognise == "on")
        self._opened = 0
        self._told: dict[str, str] = {}  # keys of open nameless programs, by the id that their clients are told
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
        working: list[Program] = []
        while self._idle:
            program = next(iter(self._idle.values()))
            if self.now - (program.idle_since or 0.0) <= self.config.reap_after:
                break
            if program.run.live or self.now - program.run.touched <= self.config.reap_after:  # a sub-agent works
                working.append(self._idle.pop(program.key))
            else:
                self._remove(program, "reaped")
        self._idle |= {program.key: program for program in working}

    def arrive(
        self,
        rid: str,
        hints: Hints,
        prompt_tokens: int,
        max_new_tokens: int,
        *,
        tier: int = 0,
        prompt: Sequence[int] = (),
        space: str = "",
    ) -> Segment:
        """A segment enters the queue; its program appears, or leaves TOOL_WAIT. A reused rid names a new segment.

        One that names no program belongs to that whose path its `prompt` continues, in token ids, within the `space`.
        """
        read = self.nameless.read(prompt, space) if hints.program_id is None else None
        program = self._known(hints, read) or self._open(rid, hints, prompt_tokens)
        hidden = max_new_tokens == 0  # it only fills the radix tree, as before forks and several samples
        if self._idle.pop(program.key, None) and program.idle_since is not None:
            self.predictor.returned(program, self.now - program.idle_since)
            if self._progress is not None:
                self._progress.returned(program.tenure, self.now, self.now - program.idle_since)
        before = program.node
        structure = self._structure(program, hints)
        declared = self._declared(program, hints, structure)
        node = visit(declared, program.visits.get(declared, 1)) if declared else position(program.segments)
        known = min(program.context, prompt_tokens)
        segment = Segment(
            rid, program, hints, declared, node, self.now, prompt_tokens, max_new_tokens, read, tier, known
        )
        program.live[rid] = segment
        program.run.live += 1
        program.run.touched = self.now
        program.segments += not hidden
        program.node = node
        if (hints.final and not hidden) or program.anonymous:
            program.closing = program.closing or "final"
        program.next_tool, program.expected_tool_s = hints.next_tool, hints.expected_tool_s
        program.calls.clear()
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

    def finish(
        self,
        segment: Segment,
        *,
        aborted: bool = False,
        output: Sequence[int] = (),
        tools: Sequence[str] | None = None,
    ) -> None:
        """A segment is over. Its program waits for a tool, or is done; an aborted last segment may be sent again.

        `output` is in token ids, `tools` what it calls: None if nothing was offered.
        """
        program = segment.program
        if program.live.pop(segment.rid, None) is not segment:
            return
        program.run.live -= 1
        program.run.touched = self.now
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
            self.nameless.finished(segment, output, called=bool(tools))
            self._calls(segment, tools)
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

    def find(self, program_id: str, owner: str = "") -> Program | None:
        """Which open program does a client with this API key mean? By the id it gave, or that it was told of."""
        key = program_key(program_id, owner)
        return self.programs.get(key) or self.programs.get(self._told.get(key, ""))

    def tool_started(self, program: Program, id: str, tool: str, expected_s: float | None = None) -> bool:
        """A harness says that a program's tool call begins; False if it said so before."""
        started = program.calls.start(id, tool, self.now)
        if not started:
            self.counts["repeated_events"] += 1
        else:
            program.next_tool = joined(program.calls.names())
            program.expected_tool_s = program.expected_tool_s if expected_s is None else expected_s
        return started

    def tool_finished(self, program: Program, id: str | None = None, tool: str | None = None) -> bool:
        """A harness says that a call is over, or all are if it names none. Is the program's next segment to come?

        One that does not run, as when it is said twice, is counted and changes nothing.
        """
        if id is None and tool is None:
            program.calls.clear()
            return True
        call = program.calls.finish(id, tool)
        if call is None:
            self.counts["stray_events"] += 1
            return False
        if call.since is not None and program.calls.running:  # the last one's time is the pause's
            self.predictor.took(program, call.tool, self.now - call.since)
        return not program.calls.running

    def end(self, program_id: str, owner: str = "") -> bool:
        """A program is announced to be over; False if unknown. With live segments it ends with the last of them."""
        program = self.find(program_id, owner)
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
            "programs": [snapshot.live(program, self.now) for program in self.programs.values()],
            "finished": [finished._asdict() for finished in self.finished],
            "costs": self.costs._asdict(),
            "counts": dict(sorted(self.counts.items())),
        }

    def _open(self, rid: str, hints: Hints, prompt_tokens: int) -> Program:
        if len(self.programs) >= self.config.max_programs and self._idle:
            self._remove(next(iter(self._idle.values())), "forgotten")
        parent = self.find(hints.parent_id, hints.owner) if hints.parent_id else None
        if hints.parent_id and parent is None:
            self.counts["unknown_parents"] += 1
        self._opened += 1
        id = hints.program_id or rid
        named = program_key(id, hints.owner)
        program = Program(
            key=named if hints.program_id is not None else f"\0{self._opened}",
            id=id,
            program_class=hints.program_class or ("" if hints.program_id is not None else NAMELESS),
            arrived=self.now,
            run=parent.run if parent else Run(self.now),
            parent_id=hints.parent_id,
            owner=hints.owner,
            identity=hints.identity,
            nameless=hints.program_id is None,
            anonymous=hints.program_id is None,
            first_prompt=prompt_tokens,
        )
        self._keep(program)
        return program

    def _keep(self, program: Program) -> None:
        self.programs[program.key] = program
        if program.nameless:
            self._told[program_key(program.id, program.owner)] = program.key

    def _known(self, hints: Hints, read: Prompt | None) -> Program | None:
        """Which program does a segment belong to? None: a new one."""
        if hints.program_id is not None:
            return self.programs.get(program_key(hints.program_id, hints.owner))
        key = None if read is None else self.nameless.continuations.continued(read)
        program = None if key is None else self.programs.get(key) or self._again(key)
        if program is not None and program.anonymous:
            self._goes_on(program)
        return program

    def _again(self, key: str) -> Program | None:
        """A program that was over goes on."""
        program = self.nameless.again(key)
        if program is not None:
            self._keep(program)
            self._idle[key] = program
            program.closing = None
            again = program.id, "prompt"
            self.finished = deque((each for each in self.finished if (each.id, each.identity) != again), FINISHED_KEPT)
        return program

    def _goes_on(self, program: Program) -> None:
        """What seemed to be a single request is a program."""
        program.anonymous, program.closing, program.identity = False, None, "prompt"

    def _calls(self, segment: Segment, tools: Sequence[str] | None) -> None:
        """A segment's output calls these tools: what does that say of its program? None: it was offered none."""
        program = segment.program
        if tools is None and not segment.hints.tools and program.nameless and program.calls.called:
            tools = ()  # some clients offer none when they want the answer
        if tools and ANSWERS.issuperset(tools):
            tools = ()
        if tools is None:
            program.calls.expect(parts(segment.hints.next_tool) if segment.hints.next_tool else ())
            return
        program.calls.expect(tools)
        if tools:
            program.next_tool = joined(tools)
            if program.closing == "answered":
                program.closing = None
            if program.anonymous and self.nameless.on and not segment.hints.final:
                self._goes_on(program)
                self.predictor.came_alone(segment)
        else:
            program.next_tool = program.expected_tool_s = None
            if program.nameless:
                program.closing = program.closing or "answered"

    def _structure(self, program: Program, hints: Hints) -> ProgramStructure | None:
        """Which structure does a segment's program have? One that the engine does not know is counted and ignored."""
        if hints.structure is not None:
            program.structure_ref = self.structures.add(hints.structure, hints.structure_ref)
        elif hints.structure_ref is not None:
            program.structure_ref = hints.structure_ref if hints.structure_ref in self.structures else None
            self.counts["unknown_structures"] += program.structure_ref is None
        return self.structures.get(program.structure_ref) if program.structure_ref is not None else None

    def _declared(self, program: Program, hints: Hints, structure: ProgramStructure | None) -> str | None:
        """At which declared node is a segment that arrives now? One that was not declared is counted and ignored.

        Several requests of one segment, such as a choice's, visit it once.
        """
        visits, node = program.visits, hints.node
        if node is not None and structure is not None and not structure.has_segment(node):
            self.counts["unknown_nodes"] += 1
            return None
        if node is not None and (node in visits or len(visits) < MAX_VISITS):
            again = hints.segment is not None and program.visited.get(node) == hints.segment
            visits[node] = visits.get(node, 0) + (not again)
            program.visited[node] = hints.segment
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
        if program.nameless:
            self._told.pop(program_key(program.id, program.owner), None)
        self._idle.pop(program.key, None)
        self.counts[f"{why}_programs"] += 1
        self.nameless.over(program, self.now, may_go_on=why in ("final", "answered"))
        if why != "forgotten":
            self.predictor.ended(program)
        self.gone(program)
        if not program.anonymous:
            self.finished.append(snapshot.finished(program, why, self.now))

    def _account_wait(self, program: Program) -> None:
        more = len(program.live) - program.running - program.waits.segments
        if more:
            program.waits.change(more, self.now)
            program.run.waits.change(more, self.now)

    def _alone(self, segment: Segment) -> float:
        """How many seconds would a finished segment have taken alone, with nothing evicted?"""
        new = max(segment.prompt_tokens - segment.known, 0)
        return self.costs.prefill * new + segment.generated * self.costs.token(segment.length)
