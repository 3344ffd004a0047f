"""A fleet of agents over HTTP, and what each program's segments and tool calls took.

An agent here is a BFCL task played to its end. Every segment is really generated, greedily, and constrained to the
reference call, so that a 135M model does the task right; the call is then parsed from the output and really executed.
BFCL's tools answer in microseconds, so each call also sleeps for the latency that the plan sampled for it.
"""

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from astraea_sglang.errors import AstraeaError, ServerError
from astraea_sglang.fleet.bfcl import Toolbox
from astraea_sglang.fleet.plan import PlannedProgram

MAX_CALL_TOKENS = 160  # the longest reference call is 88 tokens; a constrained model may spell it in more
READ_TIMEOUT_S = 300.0
ASSISTANT = "<|im_start|>assistant\n"

Event = Literal["segment", "tool", "finished", "failed"]
OnEvent = Callable[[Event, str], None]
Encode = Callable[[str], list[int]]
Clock = Callable[[], float]


def system(toolbox: Toolbox) -> str:
    """How does a task's prompt begin? Alike for all tasks with the same tools."""
    return f"<|im_start|>system\nAnswer with calls of these tools:\n{toolbox.signatures()}<|im_end|>\n"


def user(text: str) -> str:
    """What the user says."""
    return f"<|im_start|>user\n{text}<|im_end|>\n"


def answer(text: str) -> str:
    """What a tool answers, after the call that the model generated."""
    return f"\n<|im_start|>tool\n{text}<|im_end|>\n"


@dataclass(slots=True)
class SegmentRun:
    """When did one generation wait, prefill and decode? Seconds since the run began; lengths in tokens.

    `queue_s` is the server's own figure: the seconds in its waiting queue. `cached_tokens` of the prompt's tokens were
    found in the radix tree, the others were prefilled; `recomputed_tokens` of those had been computed before for the
    same program, by its previous segment, and were evicted meanwhile.
    """

    sent: float
    queue_s: float
    first_token: float
    finished: float
    prompt_tokens: int
    cached_tokens: int
    recomputed_tokens: int
    output_tokens: int


@dataclass(slots=True)
class ToolRun:
    """Which tool ran when (seconds since the run began), and how many characters did it answer?"""

    name: str
    start: float
    end: float
    result_size: int


@dataclass(slots=True)
class ProgramRun:
    """How did one program go, from its arrival to the end of its last tool call? `error` says why it was cut short."""

    id: str
    tool_class: str
    arrival: float
    finished: float = math.nan
    error: str | None = None
    segments: list[SegmentRun] = field(default_factory=list)
    tools: list[ToolRun] = field(default_factory=list)


async def run_plan(plan: Sequence[PlannedProgram], url: str, encode: Encode, on_event: OnEvent) -> list[ProgramRun]:
    """What does the fleet experience on the server at `url`? One ProgramRun for every planned one, in plan order.

    `encode` turns text into the model's token ids; `on_event` is told what just ended, and of which program.
    Nothing is retried: a program that fails carries its error, and the others go on.
    """
    loop = asyncio.get_running_loop()
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=10)
    # trust_env=False: the server is on this machine, a proxy of the environment is not for it.
    async with httpx.AsyncClient(base_url=url, timeout=timeout, limits=httpx.Limits(), trust_env=False) as client:
        around = _Surroundings(client, encode, lambda: loop.time() - start, on_event)
        agents = [_Agent(program, around) for program in plan]  # imports the tools, so before the clock starts
        start = loop.time()
        return await asyncio.gather(*(agent.run() for agent in agents))


@dataclass(frozen=True, slots=True)
class _Surroundings:
    client: httpx.AsyncClient
    encode: Encode
    clock: Clock
    on_event: OnEvent


class _Agent:
    def __init__(self, program: PlannedProgram, around: _Surroundings) -> None:
        self._program, self._around = program, around
        self._toolbox = Toolbox(program.task)
        self._context: list[int] = []
        self._log = ProgramRun(program.id, program.tool_class, program.arrival)

    async def run(self) -> ProgramRun:
        await asyncio.sleep(self._program.arrival - self._around.clock())
        try:
            await self._play()
        except (httpx.HTTPError, AstraeaError, ValueError, KeyError) as problem:  # the last two: an answer out of form
            self._log.error = f"{type(problem).__name__}: {problem}"
        self._log.finished = self._around.clock()
        self._around.on_event("failed" if self._log.error else "finished", self._program.id)
        return self._log

    async def _play(self) -> None:
        task, left = self._program.task, len(self._program.tool_seconds)
        self._add(system(self._toolbox))
        for text, calls in zip(task.turns, task.calls, strict=True):
            self._add(user(text))
            for call in calls:
                left -= 1
                self._add(ASSISTANT)
                source = await self._generate(call, final=left == 0)
                self._add(answer(await self._use_tool(source)))

    def _add(self, text: str) -> None:
        self._context += self._around.encode(text)

    async def _use_tool(self, source: str) -> str:
        start = self._around.clock()
        result = self._toolbox.call(source)
        await asyncio.sleep(self._program.tool_seconds[len(self._log.tools)])
        self._log.tools.append(ToolRun(source.partition("(")[0], start, self._around.clock(), len(result)))
        self._around.on_event("tool", self._program.id)
        return result

    async def _generate(self, reference: str, *, final: bool) -> str:
        """Generate one segment, append its own token ids to the context (re-tokenised text would miss the cache)."""
        number, sent = len(self._log.segments), self._around.clock()
        first, last = None, "{}"
        body = request_body(self._program, number, self._context, reference, final=final)
        async with self._around.client.stream("POST", "/generate", json=body) as response:
            if response.is_error:
                seen = (await response.aread()).decode(errors="replace")
                raise ServerError(f"/generate answered {response.status_code}: {seen[:200]}; see the server's log")
            async for line in response.aiter_lines():
                if line.startswith("data: {"):  # each holds the whole output so far, so the last one is enough
                    first, last = first or self._around.clock(), line.removeprefix("data: ")
        chunk: dict[str, Any] = json.loads(last)
        if chunk.get("text") != reference:
            seen = json.dumps(chunk.get("error") or chunk.get("text"))[:200]
            raise ServerError(f"segment {number} is {seen}, wanted {reference!r}; see the server's log")
        if missing := {"queue_time", "cached_tokens"} - (meta := chunk["meta_info"]).keys():
            raise ServerError(f"/generate does not tell {sorted(missing)}; start the server with --enable-metrics")
        before = self._log.segments[-1:]
        # The last generated token of a segment has no KV yet, hence the -1.
        known = before[0].prompt_tokens + before[0].output_tokens - 1 if before else 0
        self._log.segments.append(
            SegmentRun(
                sent=sent,
                queue_s=meta["queue_time"],
                first_token=first or self._around.clock(),
                finished=self._around.clock(),
                prompt_tokens=meta["prompt_tokens"],
                cached_tokens=meta["cached_tokens"],
                recomputed_tokens=max(0, known - meta["cached_tokens"]),
                output_tokens=meta["completion_tokens"],
            )
        )
        self._context += chunk["output_ids"]
        self._around.on_event("segment", self._program.id)
        return chunk["text"]


def request_body(
    program: PlannedProgram, segment: int, ids: list[int], reference: str, *, final: bool
) -> dict[str, Any]:
    """What is sent for segment number `segment`? The same to every server: one without Astraea ignores `kv_hints`.

    Hints hold what the agent knows, never what will happen: no tool name or duration ahead of the call. It knows
    which segment is its `final` one because its list of calls is fixed. The output is constrained to `reference`.
    """
    payload = {"program_id": program.id, "program_class": program.tool_class, "segment": segment}
    action = {
        "action_id": "0",
        "action_type": "astraea.program",
        "action_version": "1",
        "payload": payload | ({"final": True} if final else {}),
    }
    only_reference = f"root ::= {json.dumps(reference)}"
    return {
        "input_ids": ids,
        "sampling_params": {"temperature": 0, "max_new_tokens": MAX_CALL_TOKENS, "ebnf": only_reference},
        "stream": True,
        "session_id": program.id,
        "kv_hints": {"protocol_version": "1", "message_id": f"{program.id}.{segment}", "actions": [action]},
    }
