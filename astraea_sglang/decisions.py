"""What was decided about paused programs' KV, and how did it turn out? A bounded ring and running totals."""

from collections import defaultdict, deque
from dataclasses import asdict, dataclass, field
from typing import Any

from astraea_sglang.retain import NEVER, Choice, Wastes

KEPT = 1024  # decisions


@dataclass(slots=True)
class Decision:
    """One decision, in tokens, seconds and token-seconds; what only the program's return tells is None until then."""

    at: float  # seconds of the table's clock
    program: str
    program_class: str
    tool: str | None
    choice: Choice
    tokens: int  # of its path that only it uses
    elapsed: float  # since the tool began
    predicted: float  # that the tool would run yet
    wastes: Wastes
    pressure: bool
    done: int | None = None  # tokens of it that were pinned, freed or copied at once
    actual: float | None = None  # that the tool ran yet
    regret: float | None = None  # token-seconds wasted beyond the least that was possible
    lost: int | None = None  # tokens of its context that had to be computed again

    def close(self, actual: float) -> bool:
        """The tool ran `actual` seconds more. True if another choice would have been better."""
        true = self.wastes._replace(preserve=actual * self.tokens)
        self.actual, self.regret = actual, true.of(self.choice) - min(true)
        return self.regret > 0

    def row(self) -> dict[str, Any]:
        """JSON-ready: an impossible choice's waste is null."""
        terms = {name: None if value == NEVER else value for name, value in self.wastes._asdict().items()}
        predicted = None if self.predicted == NEVER else self.predicted
        return asdict(self) | {"wastes": terms, "predicted": predicted}


@dataclass(slots=True)
class Decisions:
    """The last KEPT decisions, and totals since the start: tokens, token-seconds or times, as their names say."""

    ring: deque[Decision] = field(default_factory=lambda: deque(maxlen=KEPT))
    totals: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, decision: Decision) -> None:
        """A decision was made."""
        self.ring.append(decision)
        self.totals[f"{decision.choice}_decisions"] += 1

    def returned(self, decisions: list[Decision], now: float) -> None:
        """The tool that `decisions` were about is back."""
        for decision in decisions:
            self.totals["mispredictions"] += decision.close(max(0.0, now - decision.at))

    def resumed(self, decision: Decision | None, known: int, cached: int) -> None:
        """Of a returned program's `known` tokens, `cached` were still in the radix tree; `decision` was the last."""
        lost = max(0, known - cached)
        self.totals["returns"] += 1
        self.totals["returned_tokens"] += known
        self.totals["hit_tokens"] += min(known, cached)
        self.totals["recomputed_tokens"] += lost
        if decision is not None:
            decision.lost = lost
            if decision.choice is Choice.DISCARD:
                self.totals["recomputed_by_choice_tokens"] += lost

    def snapshot(self) -> dict[str, Any]:
        """What would a person see? Totals and the decisions kept, latest last; JSON-ready."""
        known = self.totals["returned_tokens"]
        rate = {"return_hit_rate": self.totals["hit_tokens"] / known if known else None}
        return {"totals": dict(sorted(self.totals.items())) | rate, "decisions": [each.row() for each in self.ring]}
