"""What a client asks for its own program's KV, carried out: at once if it is paused, else when its segment ends."""

from astraea_sglang.actions import KvAction, Outcome
from astraea_sglang.keeper import Keeper
from astraea_sglang.program import Program
from astraea_sglang.retain import NEVER

NO_HOST = "there is no host pool: start the server with --enable-hierarchical-cache"
FULL = "what may be locked is taken (--astraea-preserve, --astraea-quota)"
NOT_AWAY = "nothing of it is on the host"
LATER = "the copy could not start now: SGLang makes it when the next segment starts"
TO_COME = "when this segment ends"


def obey(keeper: Keeper, program: Program, action: KvAction) -> Outcome:
    """What becomes of an action of a client for its program? It asks; the bounds of leases are ours."""

    def outcome(status: str, why: str = "", ttl_s: float | None = None, tokens: int | None = None) -> Outcome:
        keeper.decisions.totals[f"{status}_actions"] += 1
        return Outcome(action.id, action.kind, status, why, ttl_s, tokens)

    paused = program.key in keeper.holdings and not keeper.holdings[program.key].returned
    if action.kind == "kv.prefetch":
        if not keeper.swaps:
            return outcome("rejected", NO_HOST)
        if not keeper.away(program):
            return outcome("accepted", NOT_AWAY, tokens=0)
        loaded = keeper.load(program)
        return outcome("accepted", tokens=loaded) if loaded else outcome("deferred", LATER)
    if action.kind == "kv.demote" and not keeper.swaps:
        return outcome("rejected", NO_HOST)
    if action.kind == "kv.deref":
        program.asked, program.kept_until = action, 0.0
        keeper.unpin(program)
        if paused:
            carry_out(keeper, program)
        return outcome("accepted")
    ttl = keeper.leases.limits.seconds if action.ttl_s is None else min(action.ttl_s, keeper.leases.limits.seconds)
    clipped = action.ttl_s is not None and ttl < action.ttl_s
    tokens = None
    if action.kind == "kv.pin":
        room = keeper.leases.room(program.key, program.tenant)
        wanted = action.tokens or program.resident
        tokens = min(wanted, room) or None
        if not room:
            return outcome("rejected", FULL)
        clipped = clipped or room < wanted
    program.asked = KvAction(action.id, action.kind, ttl, tokens if action.tokens else None)
    if not paused:
        return outcome("clipped" if clipped else "accepted", TO_COME, ttl, tokens)
    done = carry_out(keeper, program)
    if action.kind == "kv.pin":
        return outcome("clipped" if clipped else "accepted", "", ttl, done) if done else outcome("rejected", FULL)
    return outcome("clipped" if clipped else "accepted", "", ttl, done or None)


def carry_out(keeper: Keeper, program: Program) -> int:
    """A program has paused: do what was asked for it. Tokens that were locked or moved."""
    asked, now = program.asked, keeper.now
    if asked is None:
        return 0
    ttl = asked.ttl_s or 0.0
    if asked.kind == "kv.deref":
        program.back = NEVER
        return 0
    if asked.kind == "kv.demote":
        keeper.unpin(program)
        return keeper.swap(program)
    program.kept_until = now + ttl
    program.back = now
    return keeper.pin(program, ttl, asked.tokens, asked=True) if asked.kind == "kv.pin" else 0
