"""What becomes of a paused program's KV: preserved, swapped to the host, or discarded? Pure rules over plain numbers.

The unit is the token-second of KV memory: the paper's byte-seconds without M, the bytes of a token, which is in
all three terms (Astraea eq. 5-7).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

NEVER = float("inf")


class Choice(StrEnum):
    """What happens to the KV of a program that waits for a tool?"""

    PRESERVE = "preserve"
    SWAP = "swap"
    DISCARD = "discard"


class Wastes(NamedTuple):
    """How many token-seconds of KV memory does each choice waste? Infinite where it is not possible."""

    preserve: float
    swap: float
    discard: float

    def of(self, choice: Choice) -> float:
        """The waste of one choice."""
        return {Choice.PRESERVE: self.preserve, Choice.SWAP: self.swap, Choice.DISCARD: self.discard}[choice]

    def least(self) -> Choice:
        """Which choice wastes least? The gentlest of equals."""
        return min(Choice, key=self.of)


@dataclass(frozen=True, slots=True)
class Pause:
    """A program that waits for a tool, as a rule sees it. Tokens and seconds."""

    own: int  # C_self: tokens of its path that no other program uses
    others: int  # C_batch: tokens of other requests that could run in the memory there is
    elapsed: float  # since the tool began
    remaining: float | None  # that the tool still takes, the median given what has elapsed; None if nothing is known
    mean: float | None  # that its tool takes on average, whatever has elapsed
    ttl: float  # as Continuum, or Progress-TTL, would set it
    recompute: float  # to prefill `own` tokens again
    copy: float  # to move them between device and host, one way; infinite without a host pool
    pressure: bool  # KV memory is above the high watermark


class Verdict(NamedTuple):
    """What a rule says: the choice, for how many seconds it expects the tool to run yet, and what it weighed."""

    choice: Choice
    predicted: float
    wastes: Wastes


def wastes(pause: Pause, tool: float) -> Wastes:
    """What would each choice waste, if the tool ran `tool` seconds more? Astraea eq. 5, 7 and 6."""
    return Wastes(tool * pause.own, 2 * pause.copy * pause.others, pause.recompute * pause.others)


def adaptive(pause: Pause) -> Verdict:
    """Ours: below the watermark preserve; above, the least waste by the time the tool is likely to run yet.

    A call nothing is known of is expected to take as long again as it has taken.
    """
    remaining = pause.elapsed if pause.remaining is None else pause.remaining
    terms = wastes(pause, remaining)
    return Verdict(terms.least() if pause.pressure else Choice.PRESERVE, remaining, terms)


def paper(pause: Pause) -> Verdict:
    """Astraea 4.4: as `adaptive`, but by the mean of the tool's category, whatever has elapsed."""
    mean = 0.0 if pause.mean is None else pause.mean
    terms = wastes(pause, mean)
    return Verdict(terms.least() if pause.pressure else Choice.PRESERVE, max(mean - pause.elapsed, 0.0), terms)


def infercept(pause: Pause) -> Verdict:
    """InferCept (arXiv 2402.01869): always the least waste, a call taken to last as long again as it has."""
    terms = wastes(pause, pause.elapsed)
    return Verdict(terms.least(), pause.elapsed, terms)


def ttl(pause: Pause) -> Verdict:
    """Continuum (arXiv 2511.02230), Progress-TTL: preserve for a time to live that history says pays, then let go."""
    left = pause.ttl - pause.elapsed
    terms = wastes(pause, max(left, 0.0))
    return Verdict(Choice.PRESERVE if left > 0 else Choice.DISCARD, max(left, 0.0), terms)


def _always(choice: Choice) -> Callable[[Pause], Verdict]:
    def rule(pause: Pause) -> Verdict:
        """Always the same."""
        verdict = adaptive(pause)
        return verdict._replace(choice=choice)

    return rule


class Retention(NamedTuple):
    """A way to retain: a rule, and whether its choices are carried out at once (`firm`) or when memory is wanted.

    Firm, a preserved path is locked in the radix tree, and a discarded one freed. Else both wait for an eviction, which
    takes what is wanted latest first: memory that nobody wants costs nothing to leave filled. Swaps are always made.
    """

    rule: Callable[[Pause], Verdict] | None
    firm: bool = True


RETENTIONS: dict[str, Retention] = {
    "adaptive": Retention(adaptive, firm=False),
    "discard": Retention(_always(Choice.DISCARD)),
    "infercept": Retention(infercept),
    "lru": Retention(None),
    "paper": Retention(paper),
    "preserve": Retention(_always(Choice.PRESERVE)),
    "progress-ttl": Retention(ttl),
    "swap": Retention(_always(Choice.SWAP)),
    "ttl": Retention(ttl),
}
