"""Real tasks on a live server: BFCL's, played by the fleet's agents with tools that execute, seen as plans and runs."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import httpx

from astraea_sglang.bench.figures import SegmentRun
from astraea_sglang.bench.live import LostServer
from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan
from astraea_sglang.errors import ServerError
from astraea_sglang.fleet import bfcl
from astraea_sglang.fleet.agents import MAX_CALL_TOKENS, Encode, OnEvent, ProgramRun, run_plan
from astraea_sglang.fleet.plan import make_plan


def live_bfcl(
    url: str,
    *,
    programs: int,
    seed: int,
    gap_s: float,
    factor: float = 1.0,
    most_calls: int | None = None,
    encode: Encode | None = None,
    on_event: OnEvent = lambda event, program: None,
) -> tuple[list[ProgramPlan], list[SegmentRun]]:
    """What do so many real agents experience on the SGLang server at `url`? What they did as plans, and how it went.

    Arrivals are Poisson with a mean gap of `gap_s` seconds, tool latencies are those of fleet/plan.py times `factor`;
    tasks with more than `most_calls` calls are left out. `encode` is the server's own tokenizer if not given. Raises
    LostServer when an agent does not come to its end, ConfigError when there are not so many tasks.
    """
    tasks = [task for task in bfcl.tasks() if most_calls is None or sum(map(len, task.calls)) <= most_calls]
    fleet = make_plan(tasks, programs=programs, seed=seed, gap_s=gap_s, factor=factor)
    runs = asyncio.run(run_plan(fleet, url, encode or _tokenizer(url), on_event))
    plans, segments = converted([run for run in runs if run.error is None])
    if failed := [run for run in runs if run.error is not None]:
        why = f"{len(failed)} of {len(runs)} programs failed, the first, {failed[0].id}, with {failed[0].error}"
        raise LostServer(why, segments, [run.id for run in failed])
    return plans, segments


def converted(runs: Sequence[ProgramRun]) -> tuple[list[ProgramPlan], list[SegmentRun]]:
    """How do agents that came to their end look as plans, and how did their segments go? In the order of their ends.

    The tool after a program's last segment is left out: no segment waits for it. What a first segment found in the
    cache is taken to be what others had computed.
    """
    plans, segments = [], []
    for run in runs:
        steps, context, arrived = [], 0, run.arrival
        for index, (segment, tool) in enumerate(zip(run.segments, run.tools, strict=True)):
            known = max(context - 1, segment.cached_tokens) if index else segment.cached_tokens
            last = index + 1 == len(run.segments)
            tool_s = 0.0 if last else tool.end - tool.start
            new = segment.prompt_tokens - context
            steps.append(SegmentPlan(new, segment.output_tokens, tool_s, None if last else tool.name))
            segments.append(
                SegmentRun(
                    program=run.id,
                    segment=index,
                    arrived=arrived,
                    started=min(segment.first_token, segment.sent + segment.queue_s),
                    finished=segment.finished,
                    prompt=segment.prompt_tokens,
                    output=segment.output_tokens,
                    known=known,
                    cached=segment.cached_tokens,
                    computed=segment.prompt_tokens - segment.cached_tokens,
                )
            )
            context, arrived = segment.prompt_tokens + segment.output_tokens, tool.end
        plans.append(ProgramPlan(run.id, run.tool_class, run.arrival, MAX_CALL_TOKENS, tuple(steps)))
    return plans, sorted(segments, key=lambda segment: (segment.finished, segment.program))


def _tokenizer(url: str) -> Encode:
    """The tokenizer of the server's model. Raises ServerError when it cannot be had."""
    from tokenizers import Tokenizer

    try:
        info = httpx.get(f"{url}/server_info", timeout=60, trust_env=False).raise_for_status().json()
        file = Path(info["tokenizer_path"]) / "tokenizer.json"
        found = Tokenizer.from_file(str(file)) if file.exists() else Tokenizer.from_pretrained(info["tokenizer_path"])
    except (httpx.HTTPError, KeyError) as problem:
        raise ServerError(f"{url}/server_info does not tell the tokenizer ({problem!r}); is it SGLang?") from problem
    return lambda text: found.encode(text).ids
