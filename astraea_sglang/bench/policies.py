"""Which policy does a run use? `fcfs`, `astraea`, `astraea:mlfq`, `astraea:order=mlfq,aging=5`, `continuum:host=4`.

A name is one of SGLang's, `astraea`, or a baseline of baselines.py. Settings follow a colon: those of our scheduler,
where it is the scheduler; `hints`, what programs tell of themselves; and what the engine itself is given (ENGINE).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields

from astraea_sglang.bench.baselines import BASELINES, CORRECTED, OURS, UNLOADED, Baseline
from astraea_sglang.bench.declare import KINDS
from astraea_sglang.config import Config, flag, variable
from astraea_sglang.errors import ConfigError

SGLANG = ("fcfs", "lpm", "hrrn", "dfs-weight", "lof", "shortest-prefill-first")
NAMES = (*SGLANG, OURS, *BASELINES)
WRITES = ("write_back", "write_through", "write_through_selective")

Field = tuple[str, bool | float | str]  # of SGLang's ServerArgs, and its value


def _host(text: str) -> list[Field]:
    """A host pool of so many times the device's."""
    if not text.replace(".", "", 1).isdigit():
        raise ValueError("is no number; give how many times the device's pool, as 2")
    if not float(text):
        return []
    return [("enable_hierarchical_cache", True), ("hicache_ratio", float(text)), ("hicache_write_policy", WRITES[0])]


def _write(text: str) -> list[Field]:
    """When the host pool is written to."""
    if text not in WRITES:
        raise ValueError(f"is unknown; choose one of {', '.join(WRITES)}")
    return [("hicache_write_policy", text)]


def _switch(name: str) -> Callable[[str], list[Field]]:
    def switch(text: str) -> list[Field]:
        if text not in ("on", "off"):
            raise ValueError("is unknown; choose one of on, off")
        return [(name, True)] if text == "on" else []

    return switch


ENGINE: dict[str, Callable[[str], list[Field]]] = {
    "host": _host,
    "write": _write,
    "session-radix": _switch("enable_session_radix_cache"),
    "mixed-chunk": _switch("enable_mixed_chunk"),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """A scheduler, the ASTRAEA_* variables it runs under and what its engine is given; `label` is what the user typed.

    `name` is a `--schedule-policy`, or baselines.CORRECTED or UNLOADED, which only the lab has. `hints` is what
    programs tell of themselves, one of declare.KINDS. `engine` are fields of SGLang's ServerArgs with their values.
    """

    label: str
    name: str
    environment: tuple[tuple[str, str], ...] = ()
    hints: str = "class"
    engine: tuple[Field, ...] = ()

    @property
    def schedule_policy(self) -> str:
        """What is SGLang told? `name`, but for a policy that only the lab has."""
        return BASELINES[self.name].policy if self.name in BASELINES else self.name

    @property
    def flags(self) -> list[str]:
        """The flags with which a server runs under it."""
        settings = [f"{flag(name.removeprefix('ASTRAEA_').lower())}={value}" for name, value in self.environment]
        engine = [_flag(name, value) for name, value in self.engine]
        return ["--schedule-policy", self.schedule_policy, *settings, *engine]


def parse(text: str, *, emulated: bool = True) -> list[Policy]:
    """Which policies does a comma-separated list name? In that order, each once. Raises ConfigError.

    A real server (not `emulated`) has no policy of the lab, and its clients tell what they tell.

    A comma also separates the settings of one `astraea:...`; it ends them where the name of a policy follows.
    """
    labels = re.split(rf",(?=(?:{'|'.join(NAMES)})(?:[:,]|$))", text)
    return list(dict.fromkeys(_policy(label, emulated) for label in labels))


def _policy(label: str, emulated: bool) -> Policy:
    def refuse(why: str) -> ConfigError:
        return ConfigError(f"--policies {label!r}: {why}")

    name, colon, text = label.partition(":")
    if name not in NAMES:
        known = f"{', '.join(NAMES)}; {OURS}:ORDER or NAME:KEY=VALUE,..."
        raise ConfigError(f"--policies {name!r} is unknown; choose from: {known}")
    baseline = BASELINES.get(name, Baseline("", "", policy=name))
    ours = baseline.policy == OURS
    if baseline.lab and not emulated:
        raise refuse(f"a real server has no {name}; leave it out")
    if colon and (not text or name == UNLOADED):
        raise refuse(f"nothing is set; type {name}" if not text else f"{name} takes no settings; type {name}")
    settings = _settings(baseline.settings, ours, refuse) | _settings(text, ours, refuse)
    hints = settings.pop("hints", "class")
    if hints not in KINDS:
        raise refuse(f"hints={hints} is unknown; choose one of {', '.join(KINDS)}")
    if not emulated and hints != "class":
        raise refuse(f"hints={hints} does nothing here; leave it out")
    engine: dict[str, bool | float | str] = {}
    for key in [key for key in ENGINE if key in settings]:
        value = settings.pop(key)
        try:
            engine.update(ENGINE[key](value))
        except ValueError as error:
            raise refuse(f"{key}={value} {error}") from None
    environment = {variable(key): value for key, value in settings.items()}
    retention = Config.from_environment(environment).retention
    if "hicache_write_policy" in engine and "hicache_ratio" not in engine:
        raise refuse("write does nothing without a host pool; add host=2, or leave it out")
    if "enable_session_radix_cache" in engine and ours and retention == "adaptive":
        raise refuse("session-radix=on does nothing beside retention=adaptive; add retention=lru, or leave it out")
    called = CORRECTED if name == CORRECTED else baseline.policy
    return Policy(label, called, tuple(environment.items()), hints, tuple(engine.items()))


def _settings(text: str, ours: bool, refuse: Callable[[str], ConfigError]) -> dict[str, str]:
    """Which settings does a text give, by name? Their values are not looked at."""
    known = [*(field.name for field in fields(Config)), "hints", *ENGINE] if ours else [*ENGINE]
    found: dict[str, str] = {}
    for part in text.split(",") if text else ():
        key, equals, value = part.partition("=")
        if equals and key not in known:
            raise refuse(f"no setting is called {key!r}; choose from: {', '.join(known)}")
        if equals:
            found[key] = value
        elif found:  # a value with commas in it
            last = next(reversed(found))
            found[last] = f"{found[last]},{part}"
        elif ours:
            found["order"] = part
        else:
            raise refuse(f"only {OURS} takes an order; type {OURS}:{part}, or settings as KEY=VALUE")
    return found


def _flag(name: str, value: bool | float | str) -> str:
    """What is the command-line flag of a field of ServerArgs with this value?"""
    form = f"{value:g}" if isinstance(value, float) else value
    return "--" + name.replace("_", "-") + ("" if value is True else f"={form}")
