"""How does a generation travel to a server, and what comes back? SGLang's own API, and any that is like OpenAI's.

An output is as long as planned, whatever the model would say, in one of these ways (`Target.lengths`):

    ended     a token that may not come before the last place, and cannot but come there. SGLang's scheduler learns no
              more than the declared `max_new_tokens`, as of a real request. After a retraction SGLang counts anew: that
              output gets longer, up to the declared length, and the program's next prompt leaves the rest out
    emulated  the device of ASTRAEA_EMULATE ends it; the scheduler learns no more than with `ended`
    told      `ignore_eos` and a maximum that is the planned length. This tells SGLang's scheduler how long each output
              will be: it admits by the true length, where with a real request it would expect the declared maximum
    plain     the planned length as maximum: an output that the model ends earlier is shorter
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

import httpx

from astraea_sglang.bench.plans import ProgramPlan
from astraea_sglang.errors import ServerError
from astraea_sglang.hints import Hints, payload

APIS = ("sglang", "openai")
END = 999  # the token that ends an `ended` output; none of a prompt's
FIRST, BEYOND = 1000, 31_000  # a prompt's: a vocabulary has 32,000 or more, with the special ones at either end
BIAS = 10_000.0  # no logit is larger
NEVER = 1_000_000  # tokens between two parts of a streamed output: the first token, then all the rest
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
)  # for servers of text alone: one token each, nearly always

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Target:
    """A server that answers: by which API, what it is able to, and what it says of itself."""

    api: str  # one of APIS
    sglang: bool  # it reads hints
    model: str
    context: int | None  # tokens: a prompt and the output that it declares; None if it does not tell
    pool: int | None  # tokens of KV
    lengths: str
    as_ids: bool = True  # prompts as token ids; as words if not
    info: dict[str, Any] = field(default_factory=dict)


class Answer(NamedTuple):
    """What came back, and when: `stamps` are (seconds by the caller's clock, tokens so far), the first token first."""

    stamps: list[tuple[float, int]]
    prompt: int | None  # tokens, by the server's own count; None if it does not tell
    cached: int | None
    output: int
    ids: list[int]  # of the output; may be fewer than `output` where the server does not tell them
    queue_s: float | None  # seconds in the server's queue


class Refused(ServerError):
    """The server answers that it does not take such a request (HTTP 4xx)."""


def tokens(name: str, count: int) -> list[int]:
    """Which token ids does the text `name` begin with? Pseudo-random: equal names, equal ids."""
    return Random(name).choices(range(FIRST, BEYOND), k=count)


class Context:
    """The token ids of one program so far."""

    def __init__(self, plan: ProgramPlan) -> None:
        self._plan = plan
        self._ids = [token for run in plan.prefix for token in tokens(f"shared {run.name}", run.tokens)]

    def prompt(self, segment: int) -> list[int]:
        """The prompt of a segment: what is kept of all before, outputs as they really were, and what is new."""
        step = self._plan.segments[segment]
        if segment and step.kept is not None:
            del self._ids[step.kept :]
        self._ids += tokens(f"{self._plan.id} {segment} prompt", step.new_prompt)
        return list(self._ids)

    def answered(self, segment: int, ids: Sequence[int]) -> None:
        """The output of a segment came. Ids that were not told are made up, ids beyond the planned length left out."""
        planned = self._plan.segments[segment].output
        made_up = tokens(f"{self._plan.id} {segment} output", max(0, planned - len(ids)))
        self._ids += [*ids[:planned], *made_up]


def request(
    target: Target, ids: list[int], *, output: int, declared: int, hints: Hints | None = None, every: int = NEVER
) -> tuple[str, dict[str, Any]]:
    """Which path and body ask for `output` tokens after the prompt `ids`? Streamed in parts of `every` tokens."""
    if target.api == "sglang":
        sampling = {"temperature": 0, "stream_interval": every, **_length(target.lengths, output, declared)}
        body = {"input_ids": ids, "sampling_params": sampling, "stream": True}
        return "/generate", body | (_envelope(hints) if hints else {})
    body = {
        "model": target.model,
        "prompt": ids if target.as_ids else " ".join(WORDS[token % len(WORDS)] for token in ids),
        "temperature": 0,
        "max_tokens": output,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if target.lengths == "told":
        body |= {"ignore_eos": True, "min_tokens": output}
    if target.as_ids:
        body |= {"return_token_ids": True}
    if hints and target.sglang:
        body |= {"session_id": hints.program_id, "custom_params": {"astraea": json.dumps(payload(hints))}}
    return "/v1/completions", body


def _length(lengths: str, output: int, declared: int) -> dict[str, Any]:
    if lengths == "told":
        return {"max_new_tokens": output, "ignore_eos": True}
    known = {"max_new_tokens": max(declared, output)}
    if lengths == "emulated":
        return known | {"custom_params": {"emulated_tokens": output}}
    return known | {"min_new_tokens": output - 1, "stop_token_ids": [END], "logit_bias": {str(END): BIAS}}


def _envelope(hints: Hints) -> dict[str, Any]:
    about = {"action_id": "0", "action_type": "astraea.program", "action_version": "1"}
    message = {"protocol_version": "1", "message_id": f"{hints.program_id}.{hints.segment}"}
    return {"session_id": hints.program_id, "kv_hints": message | {"actions": [about | {"payload": payload(hints)}]}}


async def generate(client: httpx.AsyncClient, path: str, body: dict[str, Any], clock: Clock) -> Answer:
    """What does the server answer, and when? Raises Refused or ServerError, httpx.TransportError when it is gone."""
    answer = Answer([], None, None, 0, [], None)
    async with client.stream("POST", path, json=body) as response:
        if response.is_error:
            seen = " ".join((await response.aread()).decode(errors="replace").split())[:300]
            problem = Refused if response.is_client_error else ServerError
            raise problem(f"{path} answered {response.status_code}: {seen}; see the server's log")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                now = clock()
                try:
                    answer = _more(answer, json.loads(line.removeprefix("data: ")), path, now)
                except (ValueError, KeyError, TypeError) as problem:
                    raise ServerError(f"{path} answered {line[:200]}, which is out of form ({problem!r})") from problem
    if not answer.stamps:
        raise ServerError(f"{path} answered without a token; see the server's log")
    return answer


def _more(answer: Answer, part: dict[str, Any], path: str, now: float) -> Answer:
    if "error" in part:
        raise ServerError(f"{path} broke off: {json.dumps(part['error'])[:300]}; see the server's log")
    if path == "/generate":
        meta = part["meta_info"]
        if (meta.get("finish_reason") or {}).get("type") == "abort":
            raise ServerError(f"{path} broke off: {json.dumps(meta['finish_reason'])[:300]}; see the server's log")
        output, ids = meta["completion_tokens"], part.get("output_ids") or []
        if len(ids) != output:  # a server that sends what is new alone
            ids = answer.ids + ids
        found = answer._replace(output=output, ids=ids, prompt=meta["prompt_tokens"], cached=meta["cached_tokens"])
        found = found._replace(queue_s=meta.get("queue_time"))
    else:
        found = answer
        for choice in part.get("choices") or ():
            ids = choice.get("token_ids") or []
            found = found._replace(output=found.output + (len(ids) or bool(choice.get("text"))), ids=[*found.ids, *ids])
        if usage := part.get("usage"):
            details = usage.get("prompt_tokens_details") or {}
            found = found._replace(
                prompt=usage["prompt_tokens"],
                cached=details.get("cached_tokens"),
                output=usage.get("completion_tokens", found.output),
            )
    if found.output > answer.output:
        answer.stamps.append((now, found.output))
    return found
