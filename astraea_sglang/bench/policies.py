"""Which policy does a run use? `fcfs`, `astraea`, `astraea:mlfq`, `astraea:order=mlfq,aging=5,hints=declared`.

What is not a setting of the scheduler: `hints`, what programs tell of themselves, and `host`, a host pool of so many
times the device's, which the demo's real server has and the emulated device does not.
"""

import re
from dataclasses import dataclass, fields

from astraea_sglang.bench.declare import KINDS
from astraea_sglang.config import Config, flag, variable
from astraea_sglang.errors import ConfigError

OURS = "astraea"
_HINTS, _HOST = variable("hints"), variable("host")
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
    host: float = 0.0

    @property
    def flags(self) -> list[str]:
        """The flags with which a server runs under it."""
        settings = [f"{flag(name.removeprefix('ASTRAEA_').lower())}={value}" for name, value in self.environment]
        host = ["--enable-hierarchical-cache", f"--hicache-ratio={self.host:g}", "--hicache-write-policy=write_back"]
        return ["--schedule-policy", self.name, *settings, *(host if self.host else ())]


def parse(text: str, *, emulated: bool = True) -> list[Policy]:
    """Which policies does a comma-separated list name? In that order, each once. Raises ConfigError.

    An emulated device has no host pool; a real server's clients tell what they tell.

    A comma also separates the settings of one `astraea:...`; it ends them where the name of a policy follows.
    """
    names = "|".join((*SGLANG, OURS))
    labels = re.split(rf",(?=(?:{names})(?:[:,]|$))", text)
    return list(dict.fromkeys(_policy(label, emulated) for label in labels))


def _policy(label: str, emulated: bool) -> Policy:
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
    host = environment.pop(_HOST, "0")
    for key, value, wrong in (("host", host, emulated and host != "0"), ("hints", hints, not emulated)):
        if wrong and value != "class":
            raise ConfigError(f"--policies {label!r}: {key}={value} does nothing here; leave it out")
    if not host.replace(".", "", 1).isdigit():
        raise ConfigError(
            f"--policies {label!r}: host={host} is no number; give how many times the device's pool, as 2"
        )
    Config.from_environment(environment)
    return Policy(label, name, tuple(environment.items()), hints, float(host))


def _settings(label: str, text: str) -> list[tuple[str, str]]:
    known = [*(field.name for field in fields(Config)), "hints", "host"]
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
