"""Progress-TTL: a program let in keeps its place for a tenure, and while a tool runs for as long as that pays.

Restated, with their constants, from AgentInfer (openJiuwen-ai/agent-infer, agentinfer/scheduling/progress_ttl) and the
vLLM router (vllm-project/router, RFC 285, PR 286, docs/program_scheduling.md). Costs are those we measure, linear in
tokens. Left out: privileges, routing between ranks, and that programs that run are marked when memory is short.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import NormalDist, fmean, pstdev
from typing import NamedTuple

from astraea_sglang.costs import Costs
from astraea_sglang.order import BUFFER, Tenure, Waiting
from astraea_sglang.program import Segment

WINDOW = 100  # tool times, and segments, before and while estimates count
ROUNDS = 14  # segments: the longest tenure, after which a program yields to those that wait
SHORTEST, LONGEST, STEPS = 0.05, 10.0, 32  # seconds: times to live that are tried
MIXED = 0.15  # share of decode throughput that is left while a prompt is computed
CONTINUOUS = 0.9  # share of its last prompt that a segment must find for its round to count
FORCE, SOONEST, LATEST = 3.0, 30.0, 300.0  # kept out for so often the time of the work ahead; seconds, least and most
BLINK = 1e-3  # seconds: a shorter tool counts as this


class _Round(NamedTuple):
    """A segment that is over."""

    ended: float  # seconds
    growth: int  # tokens that its prompt had more than the one before; 0 if unknown
    generated: int  # tokens
    streak: int


def miss(tokens: int, costs: Costs) -> float:
    """What does it cost to compute a prompt again, the decoding that it slows down included? Seconds."""
    return (2 - MIXED) * costs.prefill * tokens


def time_to_live(tools: Sequence[float], miss: float) -> float:
    """For how many seconds does a program whose refill costs `miss` keep its place while a tool runs?

    argmax over d of P(T < d) `miss` - E[min(T, d)], with T lognormal after the last WINDOW `tools`; 0 before there are
    as many.
    """
    most = min(LONGEST, miss)
    if len(tools) < WINDOW or most <= 0:
        return 0.0
    logs = [math.log(max(seconds, BLINK)) for seconds in tools]
    fit = NormalDist(fmean(logs), max(pstdev(logs), 1e-6))
    mean = math.exp(fit.mean + fit.variance / 2)

    def worth(ttl: float) -> float:
        within = fit.cdf(math.log(ttl))
        return miss * within - mean * fit.cdf(math.log(ttl) - fit.variance) - ttl * (1 - within)

    least = min(SHORTEST, most)
    best = max((least * (most / least) ** (i / (STEPS - 1)) for i in range(STEPS)), key=lambda ttl: (worth(ttl), ttl))
    return best if worth(best) >= 0 else 0.0


class Progress:
    """Who is let in, and for how long? Hears of segments and tools, and is asked before each pass."""

    def __init__(self) -> None:
        self.tenure = 0  # segments a program runs before it may be pushed out; 0 before WINDOW of them are over
        self._growth = self._generated = 0.0  # tokens per segment
        self._tools: deque[float] = deque(maxlen=WINDOW)
        self._rounds: deque[_Round] = deque(maxlen=WINDOW)
        self._crowded = False  # somebody was kept out at the last look

    def returned(self, place: Tenure, now: float, seconds: float) -> None:
        """A program's next segment comes, after its tool took `seconds`; its place may be gone."""
        self._tools.append(seconds)
        if place.held and now > place.until:
            place.held = False
            place.streak *= place.yielded  # a streak ends with a time to live, not with a yield
        place.until = math.inf

    def finished(self, now: float, segment: Segment) -> None:
        """A segment is over. Its round counts if it found most of what its program had computed before."""
        place, prompt = segment.program.tenure, segment.prompt_tokens
        growth = prompt - place.context
        found = segment.view is None or segment.view.resident >= CONTINUOUS * segment.known
        place.rounds += found
        place.streak += found
        self._rounds.append(_Round(now, growth * (0 < growth < place.context), segment.generated, place.streak))
        place.context, place.ended = prompt, now
        if len(self._rounds) == WINDOW:
            self.tenure = min(ROUNDS, max(1, math.ceil(2 * fmean(each.streak for each in self._rounds))))
            self._growth = fmean([each.growth for each in self._rounds if each.growth] or [0])
            self._generated = fmean(each.generated for each in self._rounds)

    def paused(self, place: Tenure, now: float, private: int, costs: Costs) -> None:
        """A tool begins: from now on its program's place, with `private` tokens of KV, has an end."""
        place.tokens = private + BUFFER
        place.yielded = place.rounds >= ROUNDS and self._crowded
        place.until = now + (0.0 if place.yielded else time_to_live(self._tools, miss(private, costs)))

    def kept_out(
        self, now: float, ranked: Sequence[Waiting], held: Iterable[Tenure], room: float, batch: list[int], costs: Costs
    ) -> set[str]:
        """Which of the `ranked` segments may not start now? Their rids; programs of the others are let in.

        `held` are the programs that are in, `room` tokens may be, `batch` are the lengths of what runs. A program is
        let in if it fits beside what those in will grow to in their tenure, or gains more than it costs; or instead of
        paused ones whose tenure is over; or at its deadline; or where nothing runs and nobody is in.
        """
        inside, kept = list(held), set[str]()
        left = room - sum(place.tokens for place in inside)
        owed = sum(self._owed(place) for place in inside)
        ahead = sum(max(place.until == math.inf, self._owed(place)) for place in inside)
        spent = sorted((p for p in inside if p.until < math.inf and not self._owed(p)), key=lambda p: p.rounds)
        for segment in ranked:
            place = segment.tenure
            if place is None or place.held:
                continue
            short = place.tokens + self._growth * (self.tenure + owed) - left
            fits = short <= 0 or (
                place.tokens <= left and self._gains(segment, place, inside, left, owed, batch, costs)
            )
            if not fits and short <= sum(each.tokens for each in spent):
                while short > 0:
                    spent[-1].held = False
                    left += spent[-1].tokens
                    short -= spent.pop().tokens
                fits = True
            if fits or place.forced or not (batch or any(each.held for each in inside)):
                place.enter()
                inside.append(place)
                left -= place.tokens
                owed += self.tenure
            else:
                kept.add(segment.rid)
                if place.deadline == math.inf:
                    place.deadline = now + self._patience(ahead)
            ahead += max(1, self.tenure)
        self._crowded = bool(kept)
        return kept

    def _owed(self, place: Tenure) -> int:
        """How many segments is a program's tenure yet?"""
        return max(0, self.tenure - place.rounds)

    def _patience(self, ahead: int) -> float:
        """After how many seconds is a program forced in that has `ahead` segments before it?"""
        lasted = self._rounds[-1].ended - self._rounds[0].ended if self.tenure else 0.0
        return min(LATEST, max(SOONEST, FORCE * ahead * lasted / (WINDOW - 1))) if lasted > 0 else LATEST

    def _gains(
        self, segment: Waiting, place: Tenure, inside: list[Tenure], left: float, owed: int, batch: list[int],
        costs: Costs,
    ) -> bool:  # fmt: skip
        """Does a larger batch gain more than this program's refill costs, and the tenures that are cut short for it?"""
        if not (self.tenure and batch):
            return False
        rows, context = len(batch), sum(batch)
        step = costs.step + costs.row * rows + costs.kv * context
        larger = costs.step + costs.row * (rows + 1) + costs.kv * (context + segment.length)
        gain = max(0.0, (rows + 1) / rows * step / larger - 1) * costs.decode * self._generated
        lost = 0.0
        if self._growth and owed:
            before = min(owed, left / self._growth)
            after = min(owed, max(0.0, left - place.tokens - self._growth * self.tenure) / self._growth)
            young = [each.tokens for each in inside if self._owed(each)]
            if after < before:
                lost = (before - after) / after * miss(sum(young), costs) / len(young) if after else math.inf
        return gain >= miss(place.tokens, costs) + lost
