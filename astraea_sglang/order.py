"""Which waiting segment goes next? One key function per order, smallest key first; pure, and total down to `rid`."""

from collections.abc import Callable, Iterable
from typing import NamedTuple


class Waiting(NamedTuple):
    """A waiting segment as an order sees it: plain data, equal on every tensor-parallel rank."""

    rid: str
    arrived: float  # seconds: when this segment entered the queue
    program_arrived: float  # seconds
    wait: float  # seconds: W(R), what the program's segments have spent waiting, this one included
    work: float  # seconds: T_proc(S), predicted compute time of this segment, above zero
    level: int = 0  # the program's queue in the Stateful-MLFQ

    @property
    def response_ratio(self) -> float:
        """How overdue is it? (W(R) + T_proc(S)) / T_proc(S), at least 1 (Astraea eq. 4)."""
        return (self.wait + self.work) / self.work


Order = Callable[[Waiting], tuple[float | str, ...]]


def by_arrival(segment: Waiting) -> tuple[float | str, ...]:
    """First come, first served, segment by segment: what SGLang does by default."""
    return (segment.arrived, segment.rid)


def by_response_ratio(segment: Waiting) -> tuple[float | str, ...]:
    """Highest response ratio next: short work first, but a program's accumulated wait lifts it (Astraea eq. 4)."""
    return (-segment.response_ratio, segment.program_arrived, segment.rid)


def by_queue_then_response_ratio(segment: Waiting) -> tuple[float | str, ...]:
    """Stateful-MLFQ: the first non-empty queue, and within it the highest response ratio (Astraea Algorithm 1)."""
    return (segment.level, *by_response_ratio(segment))


ORDERS: dict[str, Order] = {
    "fcfs": by_arrival,
    "hrrn": by_response_ratio,
    "mlfq": by_queue_then_response_ratio,
}


def rank(order: str, segments: Iterable[Waiting]) -> list[Waiting]:
    """In which order may the waiting segments start? Next one first; KeyError on an unknown order."""
    return sorted(segments, key=ORDERS[order])
