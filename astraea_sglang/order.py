"""Which waiting segment goes next? One key function per order, smallest key first; pure, and total down to `rid`.

A user's own priority stands above every order as strict tiers. Within a tier no program waits for ever: once it has
waited `--astraea-patience` times as long as it would take alone (T), it is overdue: its segments go before those of
every program that is not, first come first served, so that only segments that came earlier still pass them (under
`fcfs` no others do anyway). `srpt` alone gives no such promise: there a long program waits while shorter ones come.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

BETA = 1.0  # worth of a resident token, in refills of it
GAMMA = 0.5  # how much a program's wait lifts it: 0 is srpt, large values are the paper's HRRN
LEAST = 0.05  # of the remaining work: what residency cannot take off
BUFFER = 100  # tokens that a program is taken to add at once, under Progress-TTL


@dataclass(slots=True)
class Tenure:
    """A program's place in the engine, under Progress-TTL (progress.py). Times in seconds, lengths in tokens."""

    held: bool = False  # it is let in
    rounds: int = 0  # segments since it was let in that found its context
    streak: int = 0  # the same, since its time to live last ran out
    tokens: int = 0  # of private KV, and what it is taken to add
    context: int = 0  # of its last prompt
    ended: float = -math.inf  # when its last segment was over
    until: float = math.inf  # while a tool runs, when it loses its place
    deadline: float = math.inf  # kept out, when it is let in whatever there is room for
    forced: bool = False  # that time has come
    yielded: bool = False  # it has been in for the longest tenure, and others waited

    def enter(self) -> None:
        """Its program is let in, if it is not in already."""
        if not self.held:
            self.held, self.rounds, self.deadline, self.forced, self.yielded = True, 0, math.inf, False, False

    def grow(self, private: int) -> None:
        """Its program has at least `private` tokens of KV that others do not share."""
        self.tokens = max(self.tokens, private + BUFFER)


@dataclass(slots=True)
class Waiting:
    """A waiting segment as orders and the gate see it: plain data, equal on every tensor-parallel rank.

    Times in seconds, lengths in tokens.
    """

    rid: str
    arrived: float  # when this segment entered the queue
    born: float  # when the run that its program belongs to began
    tier: int = 0  # of the user's priority, smallest first
    wait: float = 0.0  # W: what its run's segments have spent waiting, this one included
    left: float = 1.0  # R: engine time of what is left of the program, tokens computed before left out; above zero
    alone: float = 1.0  # T: how long all of its run takes alone on the engine; above zero
    decode: float = 1.0  # of what this segment will generate; above zero
    prefill: float = 0.0  # per prompt token
    length: int = 0  # of the prompt
    known: int = 0  # of it, computed before
    resident: int = 0  # of it, in the radix tree (host copies included)
    reserve: float = 0.0  # what it will generate, predicted
    attained: int = 0  # the program's attained service
    level: int = 0  # the program's queue in the Stateful-MLFQ
    retracted: bool = False
    started: bool = True  # a segment of its program has run before
    late: float = 0.0  # W as a share of what a program may wait: from 1 on it is overdue
    tenure: Tenure | None = None  # its program's place, under Progress-TTL

    @property
    def work(self) -> float:
        """T_proc(S): predicted compute time of this segment (Astraea 4.2), without the tokens that are resident."""
        return self.prefill * (self.length - self.resident) + self.decode

    @property
    def response_ratio(self) -> float:
        """How overdue is this segment? (W(R) + T_proc(S)) / T_proc(S), at least 1 (Astraea eq. 4)."""
        return 1 + self.wait / self.work


Key = tuple[float | str, ...]
Order = Callable[[Waiting], Key]


def by_arrival(segment: Waiting) -> Key:
    """First come, first served, segment by segment: what SGLang does by default."""
    return (segment.arrived, segment.rid)


def by_program_arrival(segment: Waiting) -> Key:
    """First come, first served, program by program; a sub-agent came with its parent."""
    return (segment.born, segment.arrived, segment.rid)


def by_attained_service(segment: Waiting) -> Key:
    """Program-level least attained service, tokens prefilled and generated (PLAS of Autellix, arXiv 2502.13965).

    Autellix rounds service to a few queues so that preempted programs do not swap places; nothing is preempted here.
    """
    return (segment.attained, segment.born, segment.rid)


def by_remaining_work(segment: Waiting) -> Key:
    """Shortest remaining program work first, as predicted, what it has lost and must recompute included."""
    return (segment.left + segment.prefill * (segment.known - segment.resident), segment.born, segment.rid)


def by_response_ratio(segment: Waiting) -> Key:
    """The default: highest response ratio over remaining *program* work.

    k = max(0.05 R, R + miss - beta * refill) / (1 + W / T)^gamma, small first: R is what is left of the program, miss
    what it has lost and must compute again (less what others have computed for it), refill what it would lose if it
    were evicted now. With R = T = T_proc(S),
    (1 + W / T) is the response ratio of Astraea's eq. 4, and k^(1/gamma) = R^(1/gamma) / ratio: as gamma grows the
    order becomes eq. 4, highest ratio first; gamma = 0 is `srpt` with a bonus for residency. Eq. 4 itself is
    `mlfq` with one queue.
    """
    known, resident = segment.known, segment.resident
    work = segment.left + segment.prefill * (known - resident - BETA * min(known, resident))
    return (max(work, LEAST * segment.left) / (1 + segment.wait / segment.alone) ** GAMMA, segment.born, segment.rid)


def by_queue_then_response_ratio(segment: Waiting) -> Key:
    """Stateful-MLFQ: the first non-empty queue, and within it the highest response ratio (Astraea Algorithm 1)."""
    return (segment.level, -segment.response_ratio, segment.born, segment.rid)


def by_continuum(segment: Waiting) -> Key:
    """Continuum (arXiv 2511.02230): what was preempted first, then the program that came first."""
    return (not segment.retracted, segment.born, segment.arrived, segment.rid)


def by_progress(segment: Waiting) -> Key:
    """Progress-TTL: who is in, who is forced in, who has run before (latest first), who is new (progress.py)."""
    place = segment.tenure or Tenure()
    if place.held or place.forced:
        return (not place.held, segment.arrived, segment.rid)
    if place.ended > -math.inf:
        return (2 + place.yielded, -place.ended, segment.rid)
    return (4, segment.arrived, segment.rid)


ORDERS: dict[str, Order] = {
    "continuum": by_continuum,
    "fcfs": by_arrival,
    "hrrn": by_response_ratio,
    "mlfq": by_queue_then_response_ratio,
    "plas": by_attained_service,
    "program-fcfs": by_program_arrival,
    "progress": by_progress,
    "srpt": by_remaining_work,
}
WITHOUT_PATIENCE = ("fcfs", "srpt")


def rank(order: str, segments: Iterable[Waiting]) -> list[Waiting]:
    """In which order may the waiting segments start? Next one first; KeyError on an unknown order."""
    key = ORDERS[order]
    if order in WITHOUT_PATIENCE:
        return sorted(segments, key=lambda segment: (segment.tier, *key(segment)))

    def patient(segment: Waiting) -> Key:
        if segment.late > 1:
            return (segment.tier, 0, segment.arrived, segment.rid)
        return (segment.tier, 1, *key(segment))

    return sorted(segments, key=patient)
