"""The same plans against a real server, in real time: programs arrive, generate and wait for tools as planned."""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from astraea_sglang.bench import probe, wire
from astraea_sglang.bench.crowd import Coming, Crowd
from astraea_sglang.bench.declare import hints as told
from astraea_sglang.bench.figures import SegmentRun
from astraea_sglang.bench.journal import Journal
from astraea_sglang.bench.plans import ProgramPlan, families
from astraea_sglang.bench.prompts import Prompts
from astraea_sglang.errors import ServerError

Watch = Callable[[float, int], None]  # hears of a run: seconds, programs done that are no child sessions
TICK = 1.0  # seconds at most between two calls of a Watch
READ_TIMEOUT_S = 1800.0  # for the next token: a segment may wait long in an overloaded server's queue
log = logging.getLogger(__name__)


class LostServer(ServerError):
    """The server died or refused a segment. `runs` is what had been measured, `failed` the programs in flight."""

    def __init__(self, message: str, runs: list[SegmentRun], failed: list[str]) -> None:
        super().__init__(message)
        self.runs, self.failed = runs, failed


def connect(url: str, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """A client for as many requests at once as there are programs, through `transport` if one is given."""
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=10)
    limits = httpx.Limits(max_keepalive_connections=0)  # or a request may meet a connection that the server just closed
    # trust_env=False: a proxy of the environment would be measured, too.
    return httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits, trust_env=False, transport=transport)


def run(plans: Sequence[ProgramPlan], url: str, **options: Any) -> list[SegmentRun]:
    """`replay` with its `options`, for callers that are not asynchronous. Ctrl-C raises KeyboardInterrupt."""
    return asyncio.run(replay(plans, url, **options))


async def replay(
    plans: Sequence[ProgramPlan],
    url: str,
    *,
    concurrency: int | None = None,
    hints: str = "class",
    api: str | None = None,
    journal: Path | None = None,
    flush: bool = True,
    watch: Watch = lambda seconds, programs: None,
    note: probe.Note = log.warning,
    transport: httpx.AsyncBaseTransport | None = None,
) -> list[SegmentRun]:
    """What do `plans` experience on the server at `url`? Their segments in the order of their ends; wall seconds.

    Programs come at their `arrival_s`, or, with `concurrency`, the next one when one ends. Tools are slept. Programs
    tell of themselves what `hints` says (declare.KINDS). `api` is one of wire.APIS, found out if not given; how output
    lengths are forced is in wire.py. `note` hears, once each, what this server cannot do or tell. Of SGLang the prefix
    cache is emptied first, unless `flush` is off: an earlier run of the same plans would be found in it.

    A segment has `arrived` when it is due, so a late client is not hidden, and has `started` when the server's queue
    let it go; a server that does not tell gets the time of its first token, which is later.

    With a `journal`, a run that broke off goes on where it was: programs complete in the journal are not repeated. The
    others keep the gaps between their arrivals, and the clock goes on at the first of these, so that times are still
    seconds of the whole plan (closed loop: at the last finish). A program that was under way begins anew, and those
    that stood beside it and are done do not load the server again. What Ctrl-C leaves is in the journal, too.

    Raises ConfigError, before any program is sent, when a prompt does not fit the server or the journal is of other
    plans; LostServer when the server dies or refuses a segment.
    """
    with Journal(journal, plans) as kept:
        if not kept.missing:
            return kept.kept
        async with connect(url, transport) as client:
            target = await probe.probe(client, api, note)
            probe.check(kept.missing, target)
            if flush and target.sglang and not await probe.flush(client):
                note("the server refuses /flush_cache: what an earlier run left in its prefix cache may be found there")
            start = 0.0
            if kept.kept:
                later = max(segment.finished for segment in kept.kept)
                start = later if concurrency else min(family[0].arrival_s for family in families(kept.missing))
            crowd = Crowd(kept.missing, start=start if concurrency else 0.0, concurrency=concurrency)
            programs = len(families(plans))
            done = programs - len(families(kept.missing))
            playing = _Run(client, target, crowd, start, hints, note)
            try:
                await playing.play(kept.add, lambda seconds, more: watch(seconds, done + more))
            except (httpx.TransportError, ServerError) as problem:
                what = str(problem) if isinstance(problem, ServerError) else f"{url} went away ({problem!r})"
                stand = f"{done + crowd.done} of {programs} programs are done, {len(playing.failed)} were under way"
                kept_in = f"; kept in {journal}: the same command goes on there" if journal else ""
                raise LostServer(f"{what}; {stand}{kept_in}", kept.kept + playing.runs, playing.failed) from problem
            return kept.kept + playing.runs


class _Run:
    """The segments of a `crowd` on a server, by a clock that begins at `start` seconds."""

    def __init__(
        self, client: httpx.AsyncClient, target: wire.Target, crowd: Crowd, start: float, hints: str, note: probe.Note
    ) -> None:
        self.runs: list[SegmentRun] = []
        self._client, self._target, self._crowd, self._hints, self._note = client, target, crowd, hints, note
        self._prompts = Prompts(crowd.plans)
        self._contexts: dict[int, wire.Context] = {}
        self._noted: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time() - start

    @property
    def failed(self) -> list[str]:
        """Which programs are under way? In the order of the plan."""
        return [self._crowd.plans[number].id for number in sorted(self._contexts)]

    def _now(self) -> float:
        return self._loop.time() - self._began

    async def play(self, keep: Callable[[SegmentRun], None], watch: Watch) -> None:
        """Play all programs to their end; `keep` hears of every segment that ends."""
        flying: dict[asyncio.Task[SegmentRun], Coming] = {}
        try:
            while self._crowd.unfinished:
                for coming in self._crowd.due(self._now()):
                    flying[asyncio.create_task(self._segment(coming))] = coming
                watch(self._now(), self._crowd.done)
                due = self._crowd.next_due
                pause = TICK if due is None else min(TICK, max(0.0, due - self._now()))
                if not flying:
                    await asyncio.sleep(pause)
                    continue
                ended, _ = await asyncio.wait(flying, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(ended, key=_end):
                    done = task.result()
                    coming = flying.pop(task)
                    self.runs.append(done)
                    keep(done)
                    self._prompts.computed(coming.number)
                    self._crowd.ended(coming.number, coming.segment, done.finished)
            watch(self._now(), self._crowd.done)
        finally:
            for task in flying:
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)

    async def _segment(self, coming: Coming) -> SegmentRun:
        number, segment = coming.number, coming.segment
        plan, known = self._crowd.plans[number], self._prompts.known(number, segment)
        if segment == 0:
            self._contexts[number] = wire.Context(plan)
        context, planned = self._contexts[number], plan.segments[segment].output
        hints = told(plan, segment, self._hints)
        lengths = {"output": planned, "declared": plan.max_new_tokens}
        path, body = wire.request(self._target, context.prompt(segment), **lengths, hints=hints)
        sent = self._now()
        answer = await wire.generate(self._client, path, body, self._now)
        if segment + 1 == len(plan.segments):
            del self._contexts[number]
        else:
            context.answered(segment, answer.ids)
        first, finished = answer.stamps[0][0], answer.stamps[-1][0]
        self._say(answer, planned)
        prompt = answer.prompt or self._prompts.length(number, segment)
        cached = answer.cached or 0
        return SegmentRun(
            program=plan.id,
            segment=segment,
            arrived=coming.due,
            started=first if answer.queue_s is None else min(first, sent + answer.queue_s),
            finished=finished,
            prompt=prompt,
            output=answer.output,
            known=max(known, cached),  # others may have computed it while the segment queued
            cached=cached,
            computed=prompt - cached,
        )

    def _say(self, answer: wire.Answer, planned: int) -> None:
        """Tell once what an answer lacks."""
        notes = {
            "queue": answer.queue_s is None
            and "does not tell how long segments queue (SGLang does, with --enable-metrics)",
            "cache": answer.cached is None and "does not tell what it found in its cache: nothing is assumed",
            "ids": len(answer.ids) < answer.output
            and "does not tell output tokens: prompts go on with others, uncached",
            "length": answer.output != planned
            and f"gave {answer.output} tokens for {planned} planned, perhaps not once",
        }
        for key, text in notes.items():
            if text and key not in self._noted:
                self._noted.add(key)
                self._note(f"the server {text}")


def _end(task: asyncio.Task[SegmentRun]) -> float:
    """In which order do ends count? By their times, what failed last."""
    return math.inf if task.exception() else task.result().finished
