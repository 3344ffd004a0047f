"""Which paused programs' KV is held how? The only owner of that state; a radix tree carries its decisions out."""

import heapq
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from astraea_sglang.config import Config
from astraea_sglang.decisions import Decision, Decisions
from astraea_sglang.leases import Leases, Limits
from astraea_sglang.program import Program
from astraea_sglang.retain import NEVER, RETENTIONS, Choice, Pause
from astraea_sglang.table import ProgramTable
from astraea_sglang.tree import Memory, Tree

REVIEWS = 64  # holdings looked at again per tick, at most
SOONEST, LATEST = 0.05, 30.0  # seconds after which a holding is looked at again: half of what its tool may yet take
LATER = 1.1  # so much later than thought must a return be for the tree to be told
COUNTED, COUNT_EVERY = 4096, 0.5  # holdings whose KV is added up, at most; and how often, seconds
MARGIN = 0.1  # seconds before its predicted return at which a swapped path is on its way back
LIVING, BLINK = ("ttl", "progress-ttl"), 1e-3  # retentions that let go at a time; seconds until that time, at least
WAITS = 0.1  # weight of the last segment's wait in their running mean


@dataclass(slots=True, eq=False)
class Holding:
    """A paused program's KV, and what was decided about it."""

    program: Program
    paused: float  # seconds
    choice: Choice | None = None  # carried out last
    decisions: list[Decision] = field(default_factory=list)  # of this pause
    review: float = 0.0  # seconds: when it is looked at again
    pin: Any = None
    asked: bool = False  # it is locked because its client asked: no choice of ours ends that
    demoted: bool = False
    loaded: bool = False
    returned: bool = False  # the next segment has come; the lock stays until it runs

    def tails(self) -> list[int]:
        """Where its program's paths end now; they move as the tree changes."""
        return list(self.program.tails)


class Keeper:
    """Decides about paused programs' KV, in the way the configuration says, and keeps what is locked within bounds.

    Equal calls in equal order give equal decisions on every tensor-parallel rank.
    """

    def __init__(self, config: Config, table: ProgramTable, tree: Tree, pool: int) -> None:
        self.rule, self.firm = RETENTIONS[config.retention]
        self.decisions = Decisions()
        most, quota = int(config.preserve * pool), int(config.quota * pool)
        self.leases = Leases(Limits(most, quota, quota, config.lease))
        self.memory = Memory(pool)
        self.pressure = False
        self.holdings: dict[str, Holding] = {}
        self._config, self._table, self._tree = config, table, tree
        self._reviews: list[tuple[float, int, Holding]] = []
        self._expiries: list[tuple[float, int, str]] = []
        self._turn = 0  # breaks ties
        self._count_at = 0.0  # seconds: when the KV of paused programs is added up again
        self._mean_wait = 0.0  # seconds of segments in the queue

    @property
    def now(self) -> float:
        """Seconds of the table's clock."""
        return self._table.now

    # --- what happens to programs ---

    def paused(self, program: Program) -> None:
        """A program's tool begins; its path is in the tree."""
        self.dropped(program)
        holding = self.holdings[program.key] = Holding(program, self.now)
        self._look(holding)

    def returned(self, program: Program) -> None:
        """Its next segment has come, and waits."""
        holding = self.holdings.get(program.key)
        program.back = self.now
        if holding is not None and not holding.returned:
            holding.returned = True
            self._account(holding)
            self.decisions.returned(holding.decisions, self.now)

    def resumed(self, program: Program, known: int, cached: int, wait: float) -> None:
        """Its next segment runs, after `wait` seconds; `cached` of its `known` tokens were found."""
        self._mean_wait += WAITS * (wait - self._mean_wait)
        holding = self.holdings.get(program.key)
        if holding is not None:
            self.decisions.resumed(holding.decisions[-1] if holding.decisions else None, known, cached)
            self.dropped(program)

    def ended(self, program: Program) -> None:
        """A program is over. Its private KV leaves at once, unless the configuration keeps it for eviction to take."""
        self.dropped(program)
        if self._config.end == "free" and not program.anonymous and program.closing != "answered":  # it may go on
            kept = program.shared or program.first_prompt
            for node in [*program.tails]:
                self.decisions.totals["freed_at_end_tokens"] += self._tree.free(program, node, kept)

    def dropped(self, program: Program) -> None:
        """Nothing is held for a program any more."""
        holding = self.holdings.pop(program.key, None)
        if holding is not None:
            self._unpin(holding)
            self._prune()

    def cleared(self) -> None:
        """The tree was emptied, and with it every lock."""
        for holding in self.holdings.values():
            holding.pin = None
            self._unpin(holding)
        self.holdings.clear()

    def tool_finished(self, program: Program) -> int:
        """Its tool is back, the next segment on its way: tokens that are on their way back to the device."""
        program.back = self.now
        return self.load(program)

    # --- time, and memory ---

    def tick(self, memory: Memory) -> None:
        """Time has passed: leases end, and what was decided some time ago is looked at again."""
        self.memory = memory
        if not self.holdings:
            return
        now = self.now
        if now >= self._count_at:
            self._count_at = now + COUNT_EVERY
            self._weigh()
        while self._expiries and self._expiries[0][0] <= now:
            _, _, key = heapq.heappop(self._expiries)
            lease = self.leases.held.get(key)
            if lease is not None and lease.until <= now:
                self.decisions.totals["expired_leases"] += 1
                self._unpin(self.holdings[key])
        for _ in range(REVIEWS):
            if not self._reviews or self._reviews[0][0] > now:
                break
            at, _, holding = heapq.heappop(self._reviews)
            if at == holding.review and not holding.returned and self.holdings.get(holding.program.key) is holding:
                self._look(holding)

    def _prune(self) -> None:
        """Most entries of the two queues are of pauses that are over: keep what can still come due."""
        most = 32 + 4 * len(self.holdings)
        if len(self._reviews) > most:
            self._reviews = [
                e for e in self._reviews if self.holdings.get(e[2].program.key) is e[2] and e[0] == e[2].review
            ]
            heapq.heapify(self._reviews)
        if len(self._expiries) > most:
            held = self.leases.held
            self._expiries = [e for e in self._expiries if e[2] in held and held[e[2]].until == e[0]]
            heapq.heapify(self._expiries)

    def _weigh(self) -> None:
        """Is KV memory above the watermark? If that has changed, every decision is due again."""
        paused = sum(self._own(holding.program) for holding in islice(self.holdings.values(), COUNTED))
        before = self.pressure
        self.pressure = self.memory.running + paused > self._config.watermark * self.memory.pool
        if self.pressure != before and self.rule is not None:
            for holding in islice(self.holdings.values(), COUNTED):
                self._review(holding, self.now)

    def give_way(self, tokens: int, spared: str = "") -> int:
        """Locks yield, the latest return first, until `tokens` more can be evicted: tokens unlocked, maybe too few.

        That of the program `spared`, which the room is for, does not.
        """
        given = 0
        held = [self.holdings[key] for key in self.leases.held if key != spared]
        for holding in sorted(held, key=lambda h: (h.returned, -h.program.back, h.program.key)):
            if given >= tokens:
                break
            given += self.leases.held[holding.program.key].tokens
            self.decisions.totals["yielded_leases"] += 1
            self._unpin(holding)
        return given

    # --- decisions ---

    def _look(self, holding: Holding) -> None:
        """Decide about one paused program now, and carry it out."""
        program, now = holding.program, self.now
        elapsed = now - holding.paused
        pause = self._pause(holding, elapsed)
        before = program.back - now
        left = elapsed if pause.remaining is None else pause.remaining
        program.back = now + left
        if now < program.kept_until:
            program.back = now
        elif program.asked is not None and program.asked.kind == "kv.deref":
            program.back = NEVER
        if program.back - now > LATER * before:
            self._tree.wanted(program)
        review = now + min(max(SOONEST, left / 2), LATEST)
        if self.rule is not None:
            verdict = self.rule(pause)
            if self._config.retention in LIVING and verdict.choice is Choice.PRESERVE:
                review = min(review, now + max(verdict.predicted, BLINK))
            if verdict.choice is not holding.choice:
                self._account(holding)
                decision = Decision(
                    at=now,
                    program=program.id,
                    program_class=program.program_class,
                    tool=program.next_tool,
                    choice=verdict.choice,
                    tokens=pause.own,
                    elapsed=elapsed,
                    predicted=verdict.predicted,
                    wastes=verdict.wastes,
                    pressure=self.pressure,
                )
                holding.decisions.append(decision)
                self.decisions.add(decision)
                holding.choice = verdict.choice
                decision.done = self._carry_out(holding)
        if program.kept_until > now:
            review = min(review, program.kept_until)
        if self.away(program) and pause.remaining is not None:
            load_at = program.back - self._table.costs.copy * program.resident - MARGIN
            if load_at <= now:
                self.load(program)
            else:
                review = min(review, max(load_at, now + SOONEST))
        self._review(holding, review)

    def _review(self, holding: Holding, at: float) -> None:
        holding.review = at
        self._turn += 1
        heapq.heappush(self._reviews, (at, self._turn, holding))
        self._prune()

    def _pause(self, holding: Holding, elapsed: float) -> Pause:
        program, table, memory = holding.program, self._table, self.memory
        own, costs = self._own(program), table.costs
        recompute = costs.prefill * own
        benefit = recompute + self._mean_wait
        return Pause(
            own=own,
            others=min(memory.pool - own, memory.running + memory.waiting),
            elapsed=elapsed,
            remaining=table.predictor.tool_remaining(program, elapsed),
            mean=table.predictor.tool_mean(program),
            ttl=self._ttl(holding, benefit),
            recompute=recompute,
            copy=costs.copy * own if self._tree.copies else NEVER,
            pressure=self.pressure,
        )

    def _ttl(self, holding: Holding, benefit: float) -> float:
        if self._config.retention == "progress-ttl":
            return max(0.0, holding.program.tenure.until - holding.paused)
        return self._table.predictor.tool_ttl(holding.program, benefit) if self._config.retention == "ttl" else 0.0

    def _carry_out(self, holding: Holding) -> int:
        """Make the choice true in the tree: tokens that were locked, moved or freed at once."""
        if holding.choice is Choice.PRESERVE:
            return self.pin(holding.program, self.leases.limits.seconds) if self.firm else 0
        if holding.asked:
            return 0
        self._unpin(holding)
        if holding.choice is Choice.SWAP:
            return self.swap(holding.program)
        done = 0
        if self.firm and self._config.retention not in LIVING:
            done = sum(self._tree.free(holding.program, node, holding.program.shared) for node in holding.tails())
        self.decisions.totals["discarded_tokens"] += done
        return done

    def swap(self, program: Program) -> int:
        """Begin to move a paused program's paths to the host: how many tokens?"""
        holding = self.holdings[program.key]
        done = sum(self._tree.demote(program, node, program.shared) for node in holding.tails())
        if done:  # else what went before may be there, or on its way back
            holding.demoted, holding.loaded = True, False
        self.decisions.totals["swapped_tokens"] += done
        return done

    def pin(self, program: Program, seconds: float, tokens: int | None = None, *, asked: bool = False) -> int:
        """Lock a paused program's path in the tree: how many tokens, within the bounds? Its client may have `asked`."""
        holding = self.holdings.get(program.key)
        if holding is None or not program.tails:
            return 0
        self._unpin(holding)
        most = self.leases.room(program.key, program.tenant)
        holding.pin, pinned = self._tree.pin(program.tails[-1], most if tokens is None else min(most, tokens))
        if holding.pin is None:
            return 0
        until = self.now + min(seconds, self.leases.limits.seconds)
        self.leases.grant(program.key, program.tenant, pinned, until)
        program.pinned, holding.asked = True, asked
        self._turn += 1
        heapq.heappush(self._expiries, (until, self._turn, program.key))
        return pinned

    def unpin(self, program: Program) -> None:
        """Nothing of a program is locked any more."""
        if program.key in self.holdings:
            self._unpin(self.holdings[program.key])

    def _unpin(self, holding: Holding) -> None:
        if holding.pin is not None:
            self._tree.unpin(holding.pin)
            holding.pin = None
        self.leases.release(holding.program.key)
        holding.program.pinned = holding.asked = False

    @property
    def swaps(self) -> bool:
        """Is there a host pool?"""
        return self._tree.copies

    def away(self, program: Program) -> bool:
        """Is KV of a paused program on the host, and not on its way back?"""
        holding = self.holdings.get(program.key)
        return holding is not None and holding.demoted and not holding.loaded and bool(program.tails)

    def load(self, program: Program) -> int:
        """Begin to move what is away back to the device: how many tokens? 0 if none is, or no copy can start now."""
        if not self.away(program):
            return 0
        loaded = self._tree.load(program.tails[-1])
        self.holdings[program.key].loaded = loaded > 0
        self.decisions.totals["prefetched_tokens"] += loaded
        return loaded

    def _account(self, holding: Holding) -> None:
        """So long it was preserved: token-seconds."""
        if holding.choice is Choice.PRESERVE and holding.decisions:
            since = holding.decisions[-1].at
            self.decisions.totals["preserved_token_seconds"] += self._own(holding.program) * (self.now - since)

    @staticmethod
    def _own(program: Program) -> int:
        return max(0, program.resident - program.shared)

    def snapshot(self) -> dict[str, Any]:
        """What would a person see? JSON-ready."""
        return self.decisions.snapshot() | {
            "retention": self._config.retention,
            "holdings": len(self.holdings),
            "leases": len(self.leases.held),
            "leased_tokens": self.leases.tokens,
            "pressure": self.pressure,
        }
