"""The /astraea routes: from HTTP to the scheduler's program table and back."""

import json
from typing import Any

from sglang.utils import TypeBasedDispatcher

from astraea_sglang import hints
from astraea_sglang.actions import KINDS, parse
from astraea_sglang.errors import HintError
from astraea_sglang.obey import obey
from astraea_sglang.patches import intake, memory, taken, ticks
from astraea_sglang.patches.args import POLICY
from astraea_sglang.patches.intake import OWNER
from astraea_sglang.patches.lifecycle import Engine
from astraea_sglang.patches.messages import AstraeaControlIn, AstraeaControlOut, AstraeaHistory, AstraeaTick

MS = "expected_tool_duration_ms"
EVENTS = ("program_end", "tool_started", "tool_finished", *KINDS)


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
    table, keeper, kind = engine.table, engine.keeper, event["event"]
    if kind == "program_end":
        return {"ended": table.end(event["program_id"], event.get(OWNER, ""))}
    program = table.find(event["program_id"], event.get(OWNER, ""))
    if program is None:
        table.counts["unknown_events"] += 1
        return {}
    id, tool = event.get("id"), event.get("tool")
    if kind == "tool_started":
        expected_s = hints.parse({MS: event.get(MS)}).expected_tool_s
        return {"started": table.tool_started(program, str(id or tool), str(tool), expected_s)}
    if kind == "tool_finished":
        back = table.tool_finished(program, id, tool)
        loaded = keeper.tool_finished(program) if back and keeper is not None else 0
        return {"finished": back, "loaded_tokens": loaded, "running_tools": program.calls.names()}
    if keeper is None:
        return {}
    return {"outcome": obey(keeper, program, parse(kind, event, "event")).payload()}


def _check(event: dict[str, Any]) -> None:
    """Raises HintError when an event is malformed."""
    hints.identity(event.get("program_id"), "program_id")
    if event["event"] in KINDS:
        parse(event["event"], event, "event")
    for key in ("id", "tool"):
        if event.get(key) is not None:
            hints.identity(event[key], key)
    if event["event"] == "tool_started":
        hints.identity(event.get("tool"), "tool")
        hints.parse({MS: event.get(MS)})


def add_routes(server_args: Any, tokenizer_manager: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE the HTTP server runs (and before its API-key middleware): our routes, under SGLang's own admin rules."""
    if server_args.schedule_policy != POLICY:
        return
    from fastapi import HTTPException, Request
    from sglang.srt.entrypoints.http_server import app
    from sglang.srt.utils.auth import AuthLevel, auth_level

    from astraea_sglang.conventions import owner

    app.add_middleware(taken.Headers)

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
            _check(body)
            replies = await ask("event", json.dumps(body | {OWNER: owner(dict(request.headers.items()))}))
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        if body["event"] == "program_end":
            return {"ended": any(reply.get("ended") for reply in replies)}
        return next((reply for reply in replies if reply), {"unknown": body["program_id"]})
