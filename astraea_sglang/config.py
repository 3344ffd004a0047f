"""What can a user set? One frozen record; every field is a flag `--astraea-x-y` and a variable `ASTRAEA_X_Y`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from astraea_sglang.errors import ConfigError
from astraea_sglang.order import ORDERS
from astraea_sglang.retain import RETENTIONS

ADMISSIONS = ("capacity", "none", "working-set")
PREDICTIONS = ("both", "declared", "learned", "off")
ENDS = ("free", "keep")
QUEUE_STEP = 128  # tokens; the paper's thresholds are unknown, a public re-implementation uses 128, 256, 384, 512, 640


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True)
class Config:
    """The scheduler's settings. Raises ConfigError naming the flag, the value seen and what is possible."""

    order: str = _setting("hrrn", f"which waiting segment goes next: {', '.join(sorted(ORDERS))}")
    admission: str = _setting("working-set", f"which waiting segments may start at all: {', '.join(ADMISSIONS)}")
    theta: float = _setting(0.95, "share of the KV pool that the working set may fill before a cold segment must wait")
    prediction: str = _setting(
        "both", f"what tells what is left of a program: {', '.join(PREDICTIONS)} (declared structure, history)"
    )
    history: str = _setting("", "a file that keeps what was learned across restarts; written every ten seconds at most")
    retention: str = _setting(
        "adaptive", f"what becomes of a paused program's KV: {', '.join(sorted(RETENTIONS))} (lru is SGLang's own way)"
    )
    end: str = _setting("free", "a program's private KV when it ends: free it, or keep it until it is evicted")
    watermark: float = _setting(0.8, "share of the KV pool in use above which retention weighs what to keep")
    preserve: float = _setting(0.5, "share of the KV pool that may be locked for paused programs")
    quota: float = _setting(0.25, "share of the KV pool that may be locked for one program, and for one tenant")
    lease: float = _setting(300.0, "seconds after which a lock ends in any case")
    tenant_header: str = _setting("", "the request header that names a tenant; locks are then bounded for each of them")
    recognise: str = _setting("on", "find by its prompt whose next segment a request without identity is: on, off")
    queues: int = _setting(6, "how many queues the mlfq order has")
    thresholds: tuple[int, ...] = _setting(
        (), f"generated tokens of a segment above which its program moves one queue down; "
        f"one number per queue but the last, comma-separated (default: {QUEUE_STEP},{2 * QUEUE_STEP},...)"
    )  # fmt: skip
    aging: float = _setting(10.0, "response ratio above which a program in the last queue returns to the first")
    patience: float = _setting(25.0, "how often what it takes alone a program may wait before it goes first")
    reap_after: float = _setting(3600.0, "seconds after which a program is forgotten that neither waits nor runs")
    max_programs: int = _setting(100_000, "programs remembered at once; beyond, the longest idle one is forgotten")

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise _error("order", self.order, f"choose one of {', '.join(sorted(ORDERS))}")
        if self.admission not in ADMISSIONS:
            raise _error("admission", self.admission, f"choose one of {', '.join(ADMISSIONS)}")
        if self.prediction not in PREDICTIONS:
            raise _error("prediction", self.prediction, f"choose one of {', '.join(PREDICTIONS)}")
        if self.retention not in RETENTIONS:
            raise _error("retention", self.retention, f"choose one of {', '.join(sorted(RETENTIONS))}")
        if self.end not in ENDS:
            raise _error("end", self.end, f"choose one of {', '.join(ENDS)}")
        if self.recognise not in ("on", "off"):
            raise _error("recognise", self.recognise, "choose on or off")
        for name in ("theta", "watermark", "preserve", "quota"):
            if not 0 < getattr(self, name) <= 1:
                raise _error(name, getattr(self, name), "give a share above 0, at most 1")
        if self.queues < 1:
            raise _error("queues", self.queues, "give 1 or more")
        if not self.thresholds:
            object.__setattr__(self, "thresholds", tuple(QUEUE_STEP * (i + 1) for i in range(self.queues - 1)))
        if len(self.thresholds) != self.queues - 1:
            raise _error("thresholds", _text(self.thresholds), f"{self.queues} queues take {self.queues - 1} numbers")
        if any(low >= high for low, high in zip((0, *self.thresholds), self.thresholds, strict=False)):
            raise _error("thresholds", _text(self.thresholds), "give rising numbers above 0")
        if not self.aging > 1:
            raise _error("aging", self.aging, "a response ratio is at least 1: give more than 1")
        if not self.patience > 0:
            raise _error("patience", self.patience, "give more than 0")
        for name in ("lease", "reap_after"):
            if not getattr(self, name) > 0:
                raise _error(name, getattr(self, name), "give more than 0 seconds")
        if self.max_programs < 1:
            raise _error("max_programs", self.max_programs, "give 1 or more")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Which settings do the ASTRAEA_* variables ask for? Defaults for those not set."""
        texts = {f.name: environment.get(variable(f.name)) for f in fields(cls)}
        return cls(**{name: parse(name, text) for name, text in texts.items() if text is not None})


def flag(name: str) -> str:
    """What is the command-line flag of a field?"""
    return "--astraea-" + name.replace("_", "-")


def variable(name: str) -> str:
    """What is the environment variable of a field? It carries the flag into SGLang's spawned processes."""
    return "ASTRAEA_" + name.upper()


def parse(name: str, text: str) -> Any:
    """What value does a flag's text give the field `name`? Raises ConfigError when it has the wrong form."""
    kind: Any = {f.name: type(f.default) for f in fields(Config)}[name]
    try:
        if kind is tuple:
            return tuple(int(part) for part in text.split(","))
        value = kind(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number", tuple: "whole numbers with commas between them"}[kind]
        raise _error(name, text, f"give {wanted}") from None
    if kind is float and not math.isfinite(value):
        raise _error(name, text, "give a finite number")
    return value


def _text(thresholds: tuple[int, ...]) -> str:
    return ",".join(map(str, thresholds))


def _error(name: str, seen: object, fix: str) -> ConfigError:
    return ConfigError(f"{flag(name)} (or {variable(name)}) is {seen!r}: {fix}")
