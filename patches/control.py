"""The /astraea routes: from HTTP to the scheduler's program table and back."""

import json
from typing import Any

from sglang.utils import TypeBasedDispatcher

from astraea_sglang.patches import intake, memory, ticks
from astraea_sglang.patches.args import POLICY
from astraea_sglang.patches.lifecycle import Engine
from astraea_sglang.patches.messages import AstraeaControlIn, AstraeaControlOut, AstraeaHistory, AstraeaTick


def dispatch(result: None, scheduler: Any) -> None:
    """AFTER Scheduler.init_request_dispatcher: handle ticks and control messages between batches, on every rank."""
    engine: Engine | None = getattr(scheduler, "astraea", None)
    if engine is not None:
        scheduler._request_dispatcher += TypeBasedDispatcher(
            [
                (AstraeaTick, lambda tick: ticks.apply(engine, tick)),
                (AstraeaHistory, lambda history: memory.apply(engine, history)),
                (AstraeaControlIn, lambda message: AstraeaControlOut(payload=json.dumps(answer(engine, message)))),
            ]
        )


def answer(engine: Engine, message: AstraeaControlIn) -> dict[str, Any]:
    """What does this rank answer? An exception here would end the scheduler, so it becomes the answer."""
    try:
        if message.op == "program_end":
            return {"ended": engine.table.end(message.argument)}
        return engine.table.snapshot()
    except Exception as error:
        engine.fault("control")
        return {"error": repr(error)}


def add_routes(server_args: Any, tokenizer_manager: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE the HTTP server runs (and before its API-key middleware): our routes, under SGLang's own admin rules."""
    if server_args.schedule_policy != POLICY:
        return
    from fastapi import HTTPException, Request
    from sglang.srt.entrypoints.http_server import app
    from sglang.srt.utils.auth import AuthLevel, auth_level

    from astraea_sglang.errors import HintError
    from astraea_sglang.hints import identity

    async def ask(op: str, argument: str = "") -> list[dict[str, Any]]:
        tokenizer_manager.auto_create_handle_loop()
        replies = await tokenizer_manager.astraea_communicator(AstraeaControlIn(op=op, argument=argument))
        return [json.loads(reply.payload) for reply in replies]

    @app.get("/astraea/programs")
    @auth_level(AuthLevel.ADMIN_OPTIONAL)
    async def programs() -> dict[str, Any]:
        """Live programs, those over lately, and counters; one entry of `ranks` for each data-parallel rank."""
        return {"policy": POLICY, "requests": dict(sorted(intake.counts.items())), "ranks": await ask("programs")}

    @app.post("/astraea/events")  # for clients: the auth rules of /generate
    async def events(request: Request) -> dict[str, Any]:
        """{"event": "program_end", "program_id": "..."}: the program is over, its last segment has been answered."""
        try:
            body = await request.json()
            if not isinstance(body, dict) or body.get("event") != "program_end":
                raise HintError('send {"event": "program_end", "program_id": "..."}')
            replies = await ask("program_end", identity(body.get("program_id"), "program_id"))
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        return {"ended": any(reply.get("ended") for reply in replies)}
