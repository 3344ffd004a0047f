"""Which policy does a run use? `fcfs`, `astraea`, `astraea:mlfq`, `astraea:order=mlfq,aging=5,hints=declared`."""

import re
from dataclasses import dataclass, fields

from astraea_sglang.bench.declare import KINDS
from astraea_sglang.config import Config, variable
from astraea_sglang.errors import ConfigError

OURS = "astraea"
_HINTS = variable("hints")
SGLANG = ("fcfs", "lpm", "hrrn", "dfs-weight", "lof", "shortest-prefill-first")


@dataclass(frozen=True, slots=True)
class Policy:
    """A `--schedule-policy` with the ASTRAEA_* variables it runs under; `label` is what the user typed.

    `hints` is what programs tell of themselves, one of declare.KINDS.
    """

    label: str
    name: str
    environment: tuple[tuple[str, str], ...] = ()
    hints: str = "class"


def parse(text: str) -> list[Policy]:
    """Which policies does a comma-separated list name? In that order, each once. Raises ConfigError.

    A comma also separates the settings of one `astraea:...`; it ends them where the name of a policy follows.
    """
    names = "|".join((*SGLANG, OURS))
    labels = re.split(rf",(?=(?:{names})(?:[:,]|$))", text)
    return list(dict.fromkeys(_policy(label) for label in labels))


def _policy(label: str) -> Policy:
    name, colon, settings = label.partition(":")
    if name not in (*SGLANG, OURS):
        known = ", ".join((*SGLANG, OURS))
        raise ConfigError(f"--policies {name!r} is unknown; choose from: {known}; {OURS}:ORDER or {OURS}:KEY=VALUE,...")
    if colon and (name != OURS or not settings):
        raise ConfigError(f"--policies {label!r}: only {OURS} takes settings; type {name}, or {OURS}:mlfq")
    environment = dict(_settings(label, settings)) if colon else {}
    hints = environment.pop(_HINTS, "class")
    if hints not in KINDS:
        raise ConfigError(f"--policies {label!r}: hints={hints} is unknown; choose one of {', '.join(KINDS)}")
    Config.from_environment(environment)
    return Policy(label, name, tuple(environment.items()), hints)


def _settings(label: str, text: str) -> list[tuple[str, str]]:
    known = [*(field.name for field in fields(Config)), "hints"]
    found: list[tuple[str, str]] = []
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if equals and key not in known:
            raise ConfigError(f"--policies {label!r}: no setting is called {key!r}; choose from: {', '.join(known)}")
        if equals:
            found.append((variable(key), value))
        elif found:  # a value with commas in it
            found[-1] = (found[-1][0], f"{found[-1][1]},{part}")
        else:
            found.append((variable("order"), part))
    return found
