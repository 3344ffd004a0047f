"""Which server is this, what is it able to, and do the plans fit it?"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx

from astraea_sglang.bench.plans import ProgramPlan
from astraea_sglang.bench.wire import APIS, Refused, Target, generate, request, tokens
from astraea_sglang.errors import ConfigError, ServerError

SLACK = 8  # tokens of a context that SGLang keeps for itself
TOLD = "the server's scheduler is told each output's length (ignore_eos), and admits with more knowledge than usual"

Note = Callable[[str], None]


async def probe(client: httpx.AsyncClient, api: str | None, note: Note) -> Target:
    """Which server is this, and how can lengths be forced on it? A few tokens are generated to find out.

    `note` hears what it cannot do. Raises ConfigError for an unknown `api`, ServerError when nothing fitting answers.
    """
    if api not in (None, *APIS):
        raise ConfigError(f"--api {api} is unknown; choose one of: {', '.join(APIS)}")
    info = await _ask(client, "/server_info") or await _ask(client, "/get_server_info") or {}
    listed = (await _ask(client, "/v1/models") or {}).get("data") or [{}]
    sglang = "max_total_num_tokens" in info
    if api == "sglang" and not sglang:
        raise ServerError(f"{client.base_url} does not answer /server_info as SGLang does; type --api openai")
    if not sglang and "id" not in listed[0]:
        raise ServerError(f"{client.base_url} answers neither /server_info nor /v1/models; is it an LLM server?")
    model, context = listed[0].get("id") or info.get("model_path", ""), listed[0].get("max_model_len")
    found = Target(
        api or ("sglang" if sglang else "openai"),
        sglang,
        str(model),
        context or info.get("context_length"),
        info.get("max_total_num_tokens"),
        "told",
        info=info,
    )
    return await (_try_native if found.api == "sglang" else _try_openai)(client, found, note)


async def _try_native(client: httpx.AsyncClient, target: Target, note: Note) -> Target:
    without_tokenizer = target.info.get("skip_tokenizer_init")  # `ended` needs one: its scheduler would die
    hidden = replace(target, lengths="emulated" if without_tokenizer else "ended")
    if not target.info.get("speculative_algorithm") and await _came(client, hidden) == 3:
        return hidden
    if await _came(client, target) != 3:
        raise ServerError(f"{client.base_url} was asked for 3 tokens and gave another number; see the server's log")
    note(TOLD)
    return target


async def _try_openai(client: httpx.AsyncClient, target: Target, note: Note) -> Target:
    for as_ids, lengths in ((True, "told"), (False, "told"), (True, "plain"), (False, "plain")):
        tried = replace(target, as_ids=as_ids, lengths=lengths)
        if await _came(client, tried) is None:
            continue
        if not as_ids:
            note("the server takes no token ids: prompts are words, about as many as planned tokens")
        if lengths == "told" and target.sglang:
            note(TOLD)
        if lengths == "plain":
            note("the server does not know ignore_eos: outputs end where the model ends them, or at the planned length")
        return tried
    raise ServerError(f"{client.base_url}/v1/completions refuses every request; see the server's log")


async def _came(client: httpx.AsyncClient, target: Target) -> int | None:
    """How many tokens come when three are asked for? None if the request is refused."""
    try:
        answer = await generate(client, *request(target, tokens("probe", 8), output=3, declared=16), lambda: 0.0)
    except Refused:
        return None
    except httpx.TransportError as problem:
        raise ServerError(f"{client.base_url} went away ({problem!r}); see the server's log") from problem
    return answer.output


async def flush(client: httpx.AsyncClient) -> bool:
    """Empty SGLang's prefix cache. Is it done? Not while requests run, nor without a key where one is wanted."""
    return not (await _reach(client, "POST", "/flush_cache")).is_error


async def _ask(client: httpx.AsyncClient, path: str) -> dict[str, Any] | None:
    reply = await _reach(client, "GET", path)
    try:
        found = None if reply.is_error else reply.json()
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


async def _reach(client: httpx.AsyncClient, method: str, path: str) -> httpx.Response:
    try:
        return await client.request(method, path)
    except httpx.TransportError as problem:
        start = "start one with: astraea serve smollm2 --port 30000"
        raise ServerError(f"nothing answers at {client.base_url} ({problem}); {start}") from problem


def check(plans: Sequence[ProgramPlan], target: Target) -> None:
    """Does every request fit the server, with the output that it declares? Raises ConfigError naming the first not."""
    limits = (
        (target.context, "context", "choose shorter prompts, or serve a model with a longer one"),
        (target.pool, "KV pool", "choose shorter prompts, or give the server a larger --max-total-tokens"),
    )
    for plan in plans:
        for segment, prompt in enumerate(plan.prompts()):
            for limit, what, fix in limits:
                if limit is not None and prompt + plan.max_new_tokens + SLACK > limit:
                    raise ConfigError(
                        f"program {plan.id}, segment {segment}: {prompt} prompt tokens and an output declared as "
                        f"{plan.max_new_tokens} do not fit the server's {what} of {limit} tokens; {fix}"
                    )
