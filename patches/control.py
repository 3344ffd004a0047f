"""The /astraea routes: from HTTP to the scheduler's program table and back."""

import json
from typing import Any

from sglang.utils import TypeBasedDispatcher

from astraea_sglang.actions import KINDS, parse
from astraea_sglang.obey import obey
from astraea_sglang.patches import intake, memory, ticks
from astraea_sglang.patches.args import POLICY
from astraea_sglang.patches.lifecycle import Engine
from astraea_sglang.patches.messages import AstraeaControlIn, AstraeaControlOut, AstraeaHistory, AstraeaTick

EVENTS = ("program_end", "tool_finished", *KINDS)


def dispatch(result: None, scheduler: Any) -> None:
    """AFTER Scheduler.init_request_dispatcher: handle ticks and control messages between batches, on every rank."""
    engine: Engine | None = getattr(scheduler, "astraea", None)
    if engine is not None:
        scheduler._request_dispatcher += TypeBasedDispatcher(
            [
                (AstraeaTick, lambda tick: ticks.apply(engine, scheduler, tick)),
                (AstraeaHistory, lambda history: memory.apply(engine, history)),
                (AstraeaControlIn, lambda message: AstraeaControlOut(payload=json.dumps(answer(engine, message)))),
            ]
        )


def answer(engine: Engine, message: AstraeaControlIn) -> dict[str, Any]:
    """What does this rank answer? An exception here would end the scheduler, so it becomes the answer."""
    try:
        if message.op == "event":
            return _event(engine, json.loads(message.argument))
        if message.op == "decisions":
            return engine.keeper.snapshot() if engine.keeper is not None else {}
        return engine.table.snapshot()
    except Exception as error:
        engine.fault("control")
        return {"error": repr(error)}


def _event(engine: Engine, event: dict[str, Any]) -> dict[str, Any]:
    """What has happened to a program, or is asked for its KV: done where the program is known."""
    if event["event"] == "program_end":
        return {"ended": engine.table.end(event["program_id"])}
    program = engine.table.programs.get(event["program_id"])
    if program is None or engine.keeper is None:
        return {}
    if event["event"] == "tool_finished":
        return {"loaded_tokens": engine.keeper.tool_finished(program)}
    return {"outcome": obey(engine.keeper, program, parse(event["event"], event, "event")).payload()}


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

    @app.get("/astraea/decisions")
    @auth_level(AuthLevel.ADMIN_OPTIONAL)
    async def decisions() -> dict[str, Any]:
        """What was decided about paused programs' KV lately and how it turned out; totals since the start."""
        return {"policy": POLICY, "ranks": await ask("decisions")}

    @app.post("/astraea/events")  # for clients: the auth rules of /generate
    async def events(request: Request) -> dict[str, Any]:
        """What happened to a program: it is over, its tool is back; or an order for its KV while it is paused."""
        try:
            body = await request.json()
            if not isinstance(body, dict) or body.get("event") not in EVENTS:
                raise HintError(f'send {{"event": E, "program_id": "..."}} with E one of {", ".join(EVENTS)}')
            identity(body.get("program_id"), "program_id")
            if body["event"] in KINDS:
                parse(body["event"], body, "event")
            replies = await ask("event", json.dumps(body))
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        if body["event"] == "program_end":
            return {"ended": any(reply.get("ended") for reply in replies)}
        return next((reply for reply in replies if reply), {"unknown": body["program_id"]})
