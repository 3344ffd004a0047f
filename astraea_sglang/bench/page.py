"""Runs for a reader who was not there: one HTML page that needs no other file, no script and no network."""

import base64
import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

WORDS = (
    ("program", "one agent: model calls in a row, tool calls between them, until its work is done."),
    ("segment", "one model call of a program. A later segment begins with all that the program has seen so far."),
    ("policy", "what decides which waiting segment goes next, whether it may start, and what becomes of its memory."),
    ("fcfs", "first come, first served: SGLang's default, and what the others are compared with."),
    ("unloaded", "every program alone on the engine, if it is there: no policy can be better."),
    ("JCT", "job completion time of a program in seconds, from its arrival to its last token, tools included."),
    ("engine time", "JCT less the time in tools: what a scheduler can shorten."),
    ("slowdown", "a program's engine time over what it is when the program is alone. 1 is as good as it gets."),
    ("p50, p95, p99", "what 50, 95 or 99 of 100 programs do not exceed, of the programs of all seeds together."),
    ("queue", "seconds a segment waits before it is first computed."),
    ("programs/s", "programs that ended per second while others still arrived."),
    ("Jain index", "whether all are slowed alike: 1 if so, near 0 if a few bear it all. Mean of the seeds."),
    ("KV pool", "the GPU memory that holds the attention state (KV) of tokens. Its scarcity is what a policy handles."),
    ("recomputed", "prompt tokens per program computed again because their KV had been evicted."),
    ("return hits", "of the tokens a returning segment had computed before, the share still in memory."),
    ("load", "arrival rate in multiples of the knee of fcfs: the rate beyond which it begins to thrash."),
    ("seed", "what draws programs and arrivals. Under every policy, equal seeds mean equal programs and arrivals."),
    (
        "ratio, 95% interval",
        "the figure over that of fcfs for the same programs, in brackets; below it where the true ratio lies with 95% "
        "confidence, by the ratio estimator with seeds as its sample and Student's t. Few seeds make it wide.",
    ),
)


class Picture(NamedTuple):
    """A PNG file, what it shows for those who do not see it, and what to say below it."""

    path: Path
    alt: str
    caption: str

    @property
    def source(self) -> str:
        """The picture itself as a URL."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


class Section(NamedTuple):
    """Runs that can be compared: what they were, what came out in one sentence, a table, pictures."""

    heading: str
    finding: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    pictures: Sequence[Picture]


def render(sections: Sequence[Section], runs: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The page as HTML: how the runs were made (`about`), the sections, the words, every run with all its figures."""
    from jinja2 import Environment, StrictUndefined

    template = importlib.resources.files("astraea_sglang.bench").joinpath("page.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        sections=sections,
        about=about,
        words=WORDS,
        head=[*runs[0]] if runs else [],
        runs=[[_print(value) for value in run.values()] for run in runs],
        policies=list(dict.fromkeys(run["policy"] for run in runs)),
        seeds=sorted({run["seed"] for run in runs}),
        engines=sorted({str(run["sglang"]) for run in runs if run.get("sglang")}),
    )


def _print(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
