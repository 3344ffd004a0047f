"""A storm of agent programs on SGLang's real radix tree, host pool and allocator, and what must hold after each step.

By hand: python retention_machine.py 1000000 --seed 1. Prints, for each configuration, how often what happened. SGLang
keeps one live configuration per process, so each runs in a fork of its own, two at a time.
"""

import argparse
import functools
import json
import logging
import multiprocessing
import os
import random
import re
import sys
import time
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

warnings.simplefilter("ignore")
logging.disable(logging.ERROR)

import hypothesis.strategies as st  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test  # noqa: E402
from sglang.srt.disaggregation.utils import prepare_abort  # noqa: E402
from sglang.srt.managers.io_struct import AbortReq  # noqa: E402
from sglang.srt.managers.kv_hints import KvHintAction, KvHintsEnvelope  # noqa: E402
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH, Req, release_req  # noqa: E402
from sglang.srt.mem_cache.allocation import (  # noqa: E402
    alloc_paged_token_slots_extend,
    alloc_req_slots,
    alloc_token_slots,
)
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InitLoadBackParams  # noqa: E402
from sglang.srt.mem_cache.common import checkpoint_kv_cache, release_kv_cache  # noqa: E402
from sglang.srt.mem_cache.evict_policy import LRUStrategy  # noqa: E402
from sglang.srt.mem_cache.radix_cache import RadixKey  # noqa: E402
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType  # noqa: E402
from sglang.srt.plugins import load_plugins  # noqa: E402
from sglang.srt.sampling.sampling_params import SamplingParams  # noqa: E402

from astraea_sglang.actions import KINDS  # noqa: E402
from astraea_sglang.bench import device  # noqa: E402
from astraea_sglang.config import variable  # noqa: E402
from astraea_sglang.costs import Costs  # noqa: E402
from astraea_sglang.hints import Hints, payload  # noqa: E402
from astraea_sglang.patches import control, lifecycle, ticks  # noqa: E402
from astraea_sglang.patches.intake import ACTION, ARRIVED  # noqa: E402
from astraea_sglang.patches.messages import AstraeaControlIn, AstraeaTick  # noqa: E402
from astraea_sglang.patches.peer import Peer  # noqa: E402
from astraea_sglang.patches.residency import MAX_TAILS  # noqa: E402
from astraea_sglang.patches.virtual import build  # noqa: E402
from astraea_sglang.program import Program  # noqa: E402
from astraea_sglang.retain import RETENTIONS  # noqa: E402
from astraea_sglang.tree import Memory  # noqa: E402

POOL = 1024  # tokens on the device
HOST_RATIO = 0.5  # of that on the host: it is full most of the time
ROWS = 6  # requests that run at once
QUEUE = 6  # that wait at once
PROGRAMS = 14
INSPECT = 6  # steps between two looks at every node and slot
STEPS, LONG = 600, 6000  # of one storm, until all programs end and the next one begins; and of one in ten
SHRINK = 60.0  # seconds for making a failure short
HOSTS = ("none", "write_through", "write_back")
PAGES = (1, 16)
SECONDS = (0.0, 0.05, 0.05, 0.3, 0.3, 1.0, 1.0, 5.0, 30.0)  # that a tick may bring
TTLS = (None, 0.01, 1.0, 60.0, 1e6)
TOOLS = (None, "search", "shell", "human")
EXPECTED = (None, 0.0, 0.5, 60.0, 1e6)  # seconds
CHOICES: dict[str, tuple[str, ...]] = {
    "retention": tuple(sorted(RETENTIONS)),
    "end": ("free", "keep"),
    "admission": ("none", "working-set"),
    "preserve": ("0.5", "0.9", "0.05"),
    "quota": ("0.25", "0.7", "0.02"),
    "lease": ("300", "2"),
    "watermark": ("0.8", "0.1"),
    "reap_after": ("600", "60"),
    "max_programs": ("100", "9"),
}


class Setup(NamedTuple):
    """A configuration of SGLang."""

    page: int
    host: str


class Silent(Peer):
    """The scheduler's only neighbour, whom nothing it says concerns."""

    def __init__(self) -> None:
        super().__init__([], device.load("h200-llama3.1-8b"), "class", lambda seconds, programs: None)

    def send_output(self, output: Any, recv_req: Any = None) -> None:
        """An abort."""


@dataclass(eq=False)
class Client:
    """One agent as it sees itself."""

    name: str | None
    kind: str
    paths: list[array] = field(default_factory=list)  # prompt and output of its segments, latest last
    live: int = 0
    over: bool = False  # it will send nothing more
    branched: bool = False  # one of its segments did not go on where the last one ended
    alone: bool = True  # nobody else has used a part of its path, and no segment of it broke off


@dataclass(eq=False)
class Flight:
    """A request that runs."""

    req: Any
    client: Client
    goal: int  # tokens it will generate
    state: str = "computing"  # then "between" chunks or "decoding"


def operation(weight: float, **most: int) -> Callable[[Any], Any]:
    """Mark a method of Storm as something that may happen: how often, with numbers up to how many?"""

    def mark(method: Any) -> Any:
        method.weight, method.most = weight, most
        return method

    return mark


def _action(kind: str, told: dict[str, Any]) -> KvHintAction:
    return KvHintAction(action_id="a", action_type=kind, action_version="1", payload=told)


def pick(from_: Sequence[Any], number: int) -> Any:
    """The element that a number stands for."""
    return from_[number % len(from_)]


class Storm:
    """One life of a scheduler: what may happen to it, and what must hold whatever has happened."""

    def __init__(self, scheduler: Any, counts: Counter[str], chosen: dict[str, str]) -> None:
        self.scheduler, self.counts, self.chosen = scheduler, counts, chosen
        self.tree = tree = scheduler.tree_cache
        self.core, self.pool, self.page = tree.tree_core, tree.token_to_kv_pool_allocator, tree.page_size
        self.controller = tree.cache_controller
        self.host = self.controller.mem_pool_host if self.controller is not None else None
        self.kv = self.pool.get_kvcache().k_buffer[0][:, 0, 0]
        self.clients: list[Client] = []
        self.flights: list[Flight] = []
        self.waits: dict[str, tuple[Client, int]] = {}  # by rid: whose, and tokens it will generate
        self.now = 1.0  # seconds
        self.serial = 1  # the next token that nobody has used
        self.steps = 0
        self.bases = [self._tokens(90), self._tokens(200)]
        self._attach()

    def _attach(self) -> None:
        """A new engine of ours on the same scheduler, its cache emptied."""
        scheduler, tree = self.scheduler, self.tree
        tree.engine, self.core.lost, scheduler.astraea = None, None, None
        vars(tree).pop("free", None)
        scheduler.waiting_queue.clear()
        self._empty()
        full = tree.components[ComponentType.FULL]
        full.ranked, full.session_ref_eviction_strategy = False, None
        self.core.eviction_strategy = LRUStrategy()
        for name, value in self.chosen.items():
            os.environ[variable(name)] = value
        lifecycle.attach(None, scheduler)
        self.engine: Any = scheduler.astraea
        self.table, self.keeper, self.residency = self.engine.table, self.engine.keeper, self.engine.residency
        self.host_size = self.host.available_size() if self.host is not None else 0
        self._gone, self.table.gone = self.table.gone, self._ended
        self.tree.free = self._free
        self._tick(0, 0)

    def _empty(self) -> None:
        """As Scheduler.flush_cache does."""
        self.tree.reset()
        self.tree.req_to_token_pool.clear()
        self.pool.clear()

    def do(self, name: str, **numbers: int) -> bool:
        """Let something happen, unless it cannot now; then look at what must hold."""
        if getattr(self, name)(**numbers) is False:
            return False
        self.counts[name] += 1
        self.steps += 1
        self.check()
        if self.steps % INSPECT == 0:
            self.inspect()
        return True

    # --- what clients do ---

    @operation(6, base=5, grow=170, goal=60, order=9, tool=19)
    def start(self, base: int, grow: int, goal: int, order: int, tool: int) -> bool:
        """A program's first segment: on a prompt of its own, a common one, another's path, or as its sub-agent."""
        if len(self.clients) >= PROGRAMS:
            return False
        kind = ("own", "common", "99 % another's", "sub-agent", "anonymous", "twin")[base]
        others = [each for each in self.clients if each.paths and each.name]
        prompt, parent = array("q"), None
        if kind in ("common", "anonymous"):
            prompt = pick(self.bases, grow)[:]
        elif kind != "own":
            if not others:
                return False
            other = pick(others, order)
            whole = other.paths[-1]
            prompt = whole[: len(whole) * 99 // 100] if kind == "99 % another's" else whole[:]
            other.alone, parent = False, other.name if kind == "sub-agent" else None
        self.serial += 1
        client = Client(None if kind == "anonymous" else f"p{self.serial}", kind, alone=kind == "own")
        if self._send(client, prompt + self._tokens(grow), goal, order, tool, parent=parent) is False:
            return False
        self.clients.append(client)
        self.counts[f"program: {kind}"] += 1
        return True

    @operation(10, who=20, grow=120, goal=60, order=9, tool=19, final=9)
    def resume(self, who: int, grow: int, goal: int, order: int, tool: int, final: int) -> bool:
        """A tool is back: the next segment goes on where the last one ended."""
        client = self._client(who, live=False)
        if client is None:
            return False
        program = self.table.programs.get(client.name or "")
        self.counts["resumed after it was forgotten"] += program is None
        self.counts["resumed at once"] += program is not None and program.idle_since == self.now
        self.counts["resumed while its swap was under way"] += program is not None and self._leaving(program) > 0
        client.branched |= program is None
        return self._send(client, client.paths[-1] + self._tokens(grow), goal, order, tool, final=final == 0)

    @operation(3, who=20, cut=100, which=7, grow=120, goal=60, order=9, tool=19)
    def branch(self, who: int, cut: int, which: int, grow: int, goal: int, order: int, tool: int) -> bool:
        """A segment goes on from within the program's past, beside its other segments or alone."""
        client = self._client(who)
        if client is None:
            return False
        path = pick(client.paths[::-1], which)
        client.branched, client.alone = True, False
        self.counts["two live segments of one program"] += client.live > 0
        return self._send(client, path[: len(path) * cut // 100] + self._tokens(grow), goal, order, tool)

    @operation(0.3, who=20)
    def too_large(self, who: int) -> bool:
        """A prompt that the pool cannot hold: SGLang refuses it, and runs another in its place."""
        client = self._client(who)
        if client is None:
            return False
        client.branched, client.alone = True, False
        return self._send(client, client.paths[-1] + self._tokens(POOL), 1, 9, 0)

    @operation(0.4, who=20)
    def vanish(self, who: int) -> bool:
        """A client goes away without a word."""
        client = self._client(who)
        if client is None:
            return False
        client.over = True
        self._tidy()
        return True

    @operation(1.2, who=20)
    def end(self, who: int) -> bool:
        """A program is announced to be over, perhaps while segments of it live."""
        client = self._client(who)
        if client is None or client.name is None:
            return False
        client.over = True
        self._event("program_end", client)
        self._tidy()
        return True

    @operation(6, who=20, kind=4, ttl=4, tokens=600)
    def act(self, who: int, kind: int, ttl: int, tokens: int) -> bool:
        """A client orders something for its program's KV."""
        client = self._client(who)
        if client is None or client.name not in self.table.programs:
            return False
        told = {"ttl_s": TTLS[ttl], "tokens": tokens if tokens % 3 == 0 and tokens else None}
        program, before = self.table.programs[client.name], self.tree.evictable_size() + self.tree.protected_size()
        yielded = self.keeper.decisions.totals["yielded_leases"]
        outcome = self._event(KINDS[kind], client, **told)["outcome"]
        assert self.keeper.decisions.totals["yielded_leases"] == yielded
        moves = KINDS[kind] == "kv.demote" and outcome["status"] != "rejected" and not program.live
        if moves and len(program.tails) == 1:
            left = before - self.tree.evictable_size() - self.tree.protected_size()
            assert outcome.get("tokens", 0) >= left, f"{left} tokens left the device, the client is told {outcome}"
        self.counts[f"{KINDS[kind]}: {outcome['status']}"] += 1
        return True

    @operation(1.5, who=20)
    def tool_finished(self, who: int) -> bool:
        """A client says that its tool is back, before the next segment comes."""
        client = self._client(who, live=False)
        if client is None or client.name not in self.table.programs:
            return False
        yielded = self.keeper.decisions.totals["yielded_leases"]
        loaded = self._event("tool_finished", client)["loaded_tokens"]
        assert self.keeper.decisions.totals["yielded_leases"] == yielded
        self.counts["prefetched"] += loaded > 0
        return True

    @operation(1, who=20)
    def abort_waiting(self, who: int) -> bool:
        """A client hangs up before its request runs."""
        if not self.scheduler.waiting_queue:
            return False
        req = pick(self.scheduler.waiting_queue, who)
        client, _ = self.waits.pop(req.rid)
        client.alone &= not req.is_retracted
        self.scheduler.abort_request(AbortReq(rid=req.rid))
        assert req not in self.scheduler.waiting_queue and req.astraea is None
        self._landed(client, None)
        return True

    @operation(0.8, who=20)
    def abort_running(self, who: int) -> bool:
        """A client hangs up on a request that runs: it ends at its next step, or between two of its chunks."""
        if not self.flights:
            return False
        flight = pick(self.flights, who)
        req, flight.client.alone = flight.req, False
        if flight.state != "between":
            req.to_finish = FINISH_ABORT()
            return True
        prepare_abort(req, "Aborted")
        release_kv_cache(req, self.tree, checkpoint=False)
        self.scheduler.send_abort_output(AbortReq(rid=req.rid), req)
        self.flights.remove(flight)
        self._landed(flight.client, None)
        self.counts["aborted between chunks"] += 1
        return True

    # --- what the scheduler does ---

    @operation(14, chunk=300)
    def admit(self, chunk: int) -> bool:
        """A pass over the queue: its head starts, if it fits, with a first chunk of so many tokens."""
        queue, tree = self.scheduler.waiting_queue, self.tree
        if not queue or len(self.flights) >= ROWS:
            return False
        self.scheduler.policy.calc_priority(queue)
        req = queue[0]
        alone = not self.flights
        if req.rid in self.engine.blocked:
            assert not alone, f"the gate holds back {req.rid} although nothing runs"
            self.counts["gate closed"] += 1
            return True
        if not self._take(req, chunk):
            if alone and self.controller is not None:
                tree.check_hicache_events()  # copies under way hold locks until then
            if not alone or not self._take(req, chunk):
                assert not alone, f"{req.rid} cannot start although nothing runs: {self._why(req)}"
                self.counts["no room"] += 1
                return True
        queue.remove(req)
        client, goal = self.waits.pop(req.rid)
        self.flights.append(Flight(req, client, goal))
        tree.ready_to_load_host_cache()
        self._extend(req)
        lifecycle.admitted((self._batch(req), None), self.scheduler)
        return True

    def _why(self, req: Any) -> str:
        """What keeps a request from starting, for whoever reads a failure."""
        leases = {key: lease.tokens for key, lease in self.keeper.leases.held.items()}
        return (
            f"of {POOL} tokens {self._room()} are free, {self.tree.protected_size()} locked; it needs "
            f"{len(req.full_untruncated_fill_ids)} and {req.sampling_params.max_new_tokens - len(req.output_ids)} "
            f"to come, {req.prefix_len} are there; program {req.astraea.program.key}, leases {leases}"
        )

    def _take(self, req: Any, chunk: int) -> bool:
        """As PrefillAdder.add_one_req: is there room for the whole request? Then its prefix is locked, and loaded."""
        tree = self.tree
        req.init_next_round_input(tree)
        fill = len(req.full_untruncated_fill_ids)
        lock = tree.lock(req.last_node)
        try:
            more = max(req.sampling_params.max_new_tokens - len(req.output_ids), 0)
            if fill - req.prefix_len + more + self.page > self._room():
                return False
            if req.needs_host_load_back():
                self._load_back(req)
            begun = any(each.state != "decoding" for each in self.flights)  # only one prompt is computed in parts
            req.extend_end = fill if begun else min(fill, req.prefix_len + max(chunk // self.page, 1) * self.page)
            req.lock = tree.lock(req.last_node)
        finally:
            tree.unlock(lock)
        return True

    def _load_back(self, req: Any) -> None:
        tree, node, hit = self.tree, req.best_match_node, req.host_hit_length
        pinned, lock = tree.inc_host_lock_ref(node).to_dec_params(), tree.lock(node)
        req.host_loaded_length, req.last_node = tree.init_load_back(InitLoadBackParams(node, hit, req=req))
        tree.unlock(lock)
        tree.dec_host_lock_ref(node, pinned)
        assert req.host_loaded_length in (0, hit)
        req.prefix_len += req.host_loaded_length
        req.kv.cache_protected_len = req.prefix_len
        self.counts["loaded back"] += req.host_loaded_length > 0

    @operation(34, who=20, tokens=40)
    def step(self, who: int, tokens: int) -> bool:
        """A request that runs gets its next result."""
        if not self.flights:
            return False
        flight = pick(self.flights, who)
        req = flight.req
        if flight.state == "computing":
            self._computed(flight)
        elif flight.state == "between":
            if not self.pool.check_decode_capacity(num_tokens=self._rest(req) + self.page, tree_cache=self.tree):
                self.counts["chunk waits"] += 1
                return True
            flight.state, req.extend_end = "computing", len(req.full_untruncated_fill_ids)
            self._extend(req)
            lifecycle.admitted((self._batch(req), None), self.scheduler)
        elif req.to_finish is not None:
            self._finish(flight)
        else:
            self._decode(flight, min(max(tokens, 1), flight.goal - len(req.output_ids)))
        return True

    def _rest(self, req: Any) -> int:
        return len(req.full_untruncated_fill_ids) - req.prefix_len

    def _extend(self, req: Any) -> None:
        """Slots for what is computed next, as alloc_for_extend finds them; the prefix is read off the tree."""
        tree, prefix, end = self.tree, req.prefix_len, req.extend_end
        rows = tree.req_to_token_pool
        if req.kv.holds_kv:
            before = rows.req_to_token[req.kv.req_pool_idx, :prefix].to(torch.int64)
        else:
            before = tree.prefix_device_indices(req)[:prefix] if prefix else torch.empty(0, dtype=torch.int64)
            assert len(before) == prefix
        alloc_req_slots(rows, [req], tree)
        rows.req_to_token[req.kv.req_pool_idx, :prefix] = before.to(torch.int32)
        self._slots(req, prefix, end)

    def _slots(self, req: Any, begin: int, end: int) -> None:
        """Slots for tokens `begin` to `end` of a request, and what is computed for them."""
        row = self.tree.req_to_token_pool.req_to_token[req.kv.req_pool_idx]
        if self.page == 1:
            slots = alloc_token_slots(self.tree, end - begin)
        else:
            begins, ends = torch.tensor([begin]), torch.tensor([end])
            last = row[begin - 1 : begin].to(torch.int64) if begin else torch.tensor([-1])
            slots = alloc_paged_token_slots_extend(self.tree, begins, begins, ends, ends, last, end - begin)
        row[begin:end] = slots.to(torch.int32)
        req.refresh_fill_ids()
        self.kv[slots] = torch.tensor(req.full_untruncated_fill_ids[begin:end], dtype=torch.float32)
        req.kv.kv_allocated_len = req.kv.kv_committed_len = end

    def _computed(self, flight: Flight) -> None:
        """A chunk has been computed: its KV goes to the tree, after the last one the first token comes."""
        req = flight.req
        if req.extend_end < len(req.full_untruncated_fill_ids):
            checkpoint_kv_cache(req, self.tree)
            flight.state = "between"
            self.counts["chunk"] += 1
        else:
            req.output_ids.append(self._token())
            if len(req.output_ids) >= flight.goal or req.to_finish is not None:
                self._finish(flight)
                return
            checkpoint_kv_cache(req, self.tree)
            flight.state = "decoding"
        self.tree.flush_pending_backups()
        lifecycle.stepped(None, self.scheduler, self._batch(req), None)

    def _decode(self, flight: Flight, tokens: int) -> None:
        """Some steps: where they find no room the request with the fewest tokens is retracted, the last one aborted."""
        req = flight.req
        while not self.pool.check_decode_capacity(num_tokens=tokens + self.page, tree_cache=self.tree):
            decoding = [each for each in self.flights if each.state == "decoding" and each is not flight]
            if not decoding:
                if tokens > 1:
                    tokens = 1
                    continue
                self._out_of_memory(flight)
                return
            self._retract(min(decoding, key=lambda each: len(each.req.output_ids)))
        begin = req.kv.kv_committed_len
        last = req.output_ids[-1]
        req.output_ids.extend(self._tokens(tokens))
        req.refresh_fill_ids()
        assert req.full_untruncated_fill_ids[begin] == last
        self._slots(req, begin, begin + tokens)
        if len(req.output_ids) >= flight.goal:
            self._finish(flight)
        else:
            lifecycle.stepped(None, self.scheduler, self._batch(req), None)

    def _out_of_memory(self, flight: Flight) -> None:
        """As ScheduleBatch.retract_decode ends the last request, if even that finds no room."""
        others = [each for each in self.flights if each is not flight]
        if others:
            self.counts["decode waits"] += 1
            return
        req = flight.req
        self.counts["out of memory alone"] += 1
        assert not self.keeper.leases.held, "a request was aborted for memory that is locked"
        req.to_finish = FINISH_ABORT("Out of memory")
        self._release(flight)
        self.scheduler.send_abort_output(AbortReq(rid=req.rid), req)
        self.flights.remove(flight)
        flight.client.alone = False
        self._landed(flight.client, None)

    def _finish(self, flight: Flight) -> None:
        """The last token has come: what was computed goes to the tree, the row is given back."""
        req = flight.req
        req.finished_reason = req.to_finish or FINISH_LENGTH(len(req.output_ids))
        release_kv_cache(req, self.tree, checkpoint=True)
        self.tree.flush_pending_backups()
        self.flights.remove(flight)
        lifecycle.stepped(None, self.scheduler, self._batch(req), None)
        assert req.astraea is None
        self.counts["finished aborted" if req.to_finish else "finished"] += 1
        self._landed(flight.client, req.origin_input_ids + req.output_ids)

    @operation(0.8, who=20)
    def retract(self, who: int) -> bool:
        """A decoding request gives its memory back, and waits again."""
        decoding = [each for each in self.flights if each.state == "decoding" and each.req.to_finish is None]
        if not decoding:
            return False
        self._retract(pick(decoding, who))
        return True

    def _retract(self, flight: Flight) -> None:
        self._release(flight)
        self.flights.remove(flight)
        flight.client.alone = False
        self.waits[flight.req.rid] = flight.client, flight.goal
        self.scheduler._add_request_to_queue(flight.req, is_retracted=True)
        self.counts["retracted"] += 1

    def _release(self, flight: Flight) -> None:
        release_req(
            req=flight.req,
            remaing_req_count=len(self.flights) - 1,
            req_to_token_pool=self.tree.req_to_token_pool,
            token_to_kv_pool_allocator=self.pool,
            tree_cache=self.tree,
            hisparse_coordinator=None,
        )

    @operation(8, seconds=len(SECONDS) - 1, dear=3)
    def tick(self, seconds: int, dear: int) -> bool:
        """Time passes."""
        self._tick(SECONDS[seconds], dear)
        return True

    @operation(0.25, seconds=900)
    def doze(self, seconds: int) -> bool:
        """Minutes pass: leases end, and programs whose tool never returned are forgotten."""
        self._tick(seconds, 0)
        return True

    def _tick(self, seconds: float, dear: int) -> None:
        self.now += seconds
        costs = Costs()._replace(prefill=(3e-5, 3e-3, 1e-7, 3e-2)[dear], copy=(5e-6, 5e-4, 1e-3, 5e-6)[dear])
        ticks.apply(self.engine, self.scheduler, AstraeaTick(now=self.now, costs=list(costs)))

    @operation(2, running=POOL, waiting=2 * POOL)
    def weigh(self, running: int, waiting: int) -> bool:
        """The keeper looks again, told that memory is as scarce as that."""
        self.now += 0.05
        self.table.advance(self.now)
        self.keeper.tick(Memory(POOL, running, waiting))
        return True

    @operation(2.5, tokens=POOL)
    def press(self, tokens: int) -> bool:
        """Something wants so many free tokens; locks give way."""
        self.pool.evict_to_free_tokens(self.tree, min(tokens, POOL))
        return True

    @operation(9)
    def acks(self) -> bool:
        """SGLang hears of copies that are done."""
        if self.controller is None:
            return False
        self.counts["acks: copies to the host"] += len(self.tree.ongoing_write_through)
        self.counts["acks: copies back"] += len(self.tree.ongoing_load_back)
        self.tree.check_hicache_events()
        assert not self.tree.leaving and not self.tree.unfreed, "every copy is made, and acted on"
        return True

    @operation(0.15)
    def flush(self) -> bool:
        """The cache is flushed, which SGLang does only while nothing runs."""
        if self.flights:
            return False
        self._empty()
        for client in self.clients:
            client.alone = False
        return True

    # --- parts of the above ---

    def _token(self) -> int:
        self.serial += 1
        return self.serial

    def _tokens(self, number: int) -> array:
        """So many tokens that nobody else has."""
        return array("q", [self._token()]) * max(number, 1)

    def _client(self, number: int, live: bool | None = None) -> Client | None:
        fit = [each for each in self.clients if each.paths and each.name and (live is None or bool(each.live) == live)]
        return pick(fit, number) if fit else None

    def _send(
        self,
        client: Client,
        prompt: array,
        goal: int,
        order: int,
        tool: int,
        *,
        final: bool = False,
        parent: str | None = None,
    ) -> bool:
        """A request reaches the scheduler, as SGLang's tokenizer would send it."""
        queue = self.scheduler.waiting_queue
        if len(queue) >= QUEUE:
            return False
        goal = max(goal, 1)
        hints = Hints(
            program_id=client.name,
            program_class=client.kind,
            next_tool=pick(TOOLS, tool),
            expected_tool_s=pick(EXPECTED, tool),
            final=final,
            parent_id=parent,
        )
        actions = [_action(ACTION, payload(hints) | {ARRIVED: self.now})]
        if order < len(KINDS) and client.name:
            actions.append(_action(KINDS[order], {"ttl_s": pick(TTLS, goal)}))
        most = min(2 * goal, POOL - -(-len(prompt) // self.page) * self.page - self.page - 1)
        params = SamplingParams(max_new_tokens=max(most, 1), temperature=0.0)
        rid = f"r{self._token()}."
        envelope = KvHintsEnvelope(protocol_version="1", message_id="m", actions=actions)
        req = Req(rid, "", prompt, params, kv_hints=envelope, vocab_size=1 << 24)
        if most < 1:
            req.set_finish_with_abort("too long")
            self.counts["refused"] += 1
        client.live += 1
        client.over |= final or client.name is None
        self.waits[rid] = client, min(goal, max(most, 1))
        known = client.name in self.table.programs
        self.scheduler._add_request_to_queue(req)
        program: Program = vars(req)["astraea"].program
        if not known and not program.anonymous:
            program.tenant = pick(("", "a", "b"), self.serial)
        return True

    def _landed(self, client: Client, path: array | None) -> None:
        client.live -= 1
        if path is not None:
            client.paths = [*client.paths[-3:], path]
        self._tidy()

    def _tidy(self) -> None:
        self.clients = [each for each in self.clients if each.live or (not each.over and each.paths)]

    def _event(self, kind: str, client: Client, **more: Any) -> dict[str, Any]:
        argument = json.dumps({"event": kind, "program_id": client.name, **more})
        return control.answer(self.engine, AstraeaControlIn(op="event", argument=argument))

    def _batch(self, req: Any) -> Any:
        return SimpleNamespace(reqs=[req], decoding_reqs=None)

    def _room(self) -> int:
        return self.pool.available_size() + self.tree.evictable_size()

    def _aligned(self, tokens: int) -> int:
        return tokens // self.page * self.page

    def _nodes(self, path: array) -> Iterator[tuple[Any, int]]:
        """The nodes on a path, each with how many tokens of it are on the path. Touches nothing."""
        key, node, at = RadixKey(path).page_aligned(self.page), self.core.root_node, 0
        while at < len(key) and (node := node.children.get(key.child_key_at(at, self.page))) is not None:
            same = node.key.match_at(key, at, page_size=self.page)
            yield node, same
            at += same
            if same < len(node.key):
                return

    def _found(self, path: array) -> int:
        """How many tokens of a path does the tree hold, on the device or the host?"""
        return sum(same for _, same in self._nodes(path))

    def _seen(self, path: array) -> str:
        """A path, for whoever reads a failure."""
        return "; ".join(
            f"{same} of node {node.id} ({len(node.key)} tokens, {'host' if node.evicted else 'device'}, "
            f"locks {node.component_data[ComponentType.FULL].lock_ref}, "
            f"children {[c.id for c in node.children.values()]}, "
            f"ends {[*(self.residency.ending.get(node.id) or ())]})"
            for node, same in self._nodes(path)
        )

    def _leaving(self, program: Program) -> int:
        """How many tokens of a program's paths leave the device once their copies are done?"""
        leaving = {node for end in program.tails for node in self.tree.leaving.get(end, ())}
        return sum(len(self.core.alive(node).key) for node in leaving if self.core.alive(node) is not None)

    def _copying(self) -> bool:
        return bool(self.controller and (self.tree.ongoing_write_through or self.tree.ongoing_load_back))

    def _free(self, program: Program, node: int, kept: int) -> int:
        """Stands before the tree's own: what one program frees is what the tree holds less, and no other's path."""

        def others() -> list[tuple[str, int, bool]]:
            every = self.table.programs.items()
            ends = [(key, end) for key, other in every if other is not program for end in other.tails]
            return [(key, end, self.core.alive(end).evicted) for key, end in ends]

        def tokens() -> int:
            return sum(len(each.key) for each in self.core._collect_all_nodes())

        before, held = others(), tokens()
        freed = type(self.tree).free(self.tree, program, node, kept)
        assert others() == before, f"what {program.id} freed was another's: {before}, now {others()}"
        assert held - tokens() == freed
        return freed

    def _ended(self, program: Program) -> None:
        """A program is over: with end=free nothing of its own is left beyond the prompt it began with."""
        self._gone(program)
        client = next((each for each in self.clients if each.name == program.id), None)
        if client is None or not client.alone or not client.paths or self.chosen["end"] != "free" or self._copying():
            return
        kept = program.shared or program.first_prompt
        path = max(client.paths, key=self._found)
        left = self._found(path)
        assert left <= -(-kept // self.page) * self.page, (
            f"{left} tokens of {program.id} are left, {kept} are its prompt: {self._seen(path)}"
        )
        self.counts["its KV went with it"] += 1

    # --- what must hold ---

    def check(self) -> None:
        """After each step: the pool adds up, and what we believe of programs, leases and nodes fits together."""
        tree, keeper, leases = self.tree, self.keeper, self.keeper.leases
        outside = sum(
            -(-each.req.kv.kv_allocated_len // self.page) * self.page - each.req.kv.cache_protected_len
            for each in self.flights
        )
        held = self.pool.available_size(), tree.evictable_size(), tree.protected_size(), outside
        assert sum(held) == POOL, held
        if not self.flights and not leases.held and not self._copying():
            assert not held[2], f"{held[2]} tokens are locked, by nobody"
        assert not self.engine.faults and not self.table.counts["faults"]
        self._check_leases(leases)
        self._check_residency()
        for key, holding in keeper.holdings.items():
            program = self.table.programs[key]
            assert program is holding.program
            assert holding.returned or not program.live, f"{key} has live segments, and is held as paused"
        for key, program in self.table.programs.items():
            paused = program.tails and not program.live
            assert not paused or (key in keeper.holdings and not keeper.holdings[key].returned), f"{key} is not held"
        for heap in (keeper._reviews, keeper._expiries):
            assert len(heap) <= 64 + 4 * len(keeper.holdings), (
                f"{len(heap)} entries for {len(keeper.holdings)} holdings"
            )

    def _check_leases(self, leases: Any) -> None:
        assert leases.tokens == sum(each.tokens for each in leases.held.values()) <= leases.limits.total
        tenants: Counter[str] = Counter()
        for key, lease in leases.held.items():
            holding = self.keeper.holdings[key]
            node = self.core.alive(holding.pin.node)
            assert node is not None and holding.program.pinned and holding.program.tails
            assert self.core.depth(node) == lease.tokens <= leases.limits.program
            tenants[lease.tenant] += lease.tokens
        for key, holding in self.keeper.holdings.items():
            assert (holding.pin is not None) == (key in leases.held) == holding.program.pinned
        assert leases.tenants == {name: tokens for name, tokens in tenants.items() if name}
        assert all(tokens <= leases.limits.tenant for tokens in leases.tenants.values())

    def _check_residency(self) -> None:
        pairs = set()
        for node, owners in self.residency.ending.items():
            assert owners and self.core.alive(node) is not None
            for key, program in owners.items():
                assert self.table.programs.get(key) is program
                pairs.add((key, node))
        tails = [(key, node) for key, program in self.table.programs.items() for node in program.tails]
        assert len(tails) == len(pairs) and set(tails) == pairs
        assert all(len(program.tails) <= MAX_TAILS for program in self.table.programs.values())
        assert all(self.core.alive(node) is not None for node in self.residency.shared)

    def inspect(self) -> None:
        """Now and then: every node, slot and copy, by SGLang's own check and by ours."""
        if self.tree.is_write_back or not self._copying():  # else SGLang's check takes what is under way for an error
            self.tree.sanity_check()
        nodes = [node for node in self.core._collect_all_nodes() if node is not self.core.root_node]
        values = [(node, node.component_data[ComponentType.FULL]) for node in nodes]
        device = [(node.key.raw_token_ids(), data.value) for node, data in values if data.value is not None]
        pages = [value[:: self.page] // self.page for _, value in device]
        row = self.tree.req_to_token_pool.req_to_token
        for flight in self.flights:
            kv = flight.req.kv
            own = row[kv.req_pool_idx, kv.cache_protected_len : kv.kv_allocated_len]
            pages.append(own[:: self.page].to(torch.int64) // self.page)
            ids = flight.req.full_untruncated_fill_ids[: kv.kv_allocated_len]
            device.append((ids, row[kv.req_pool_idx, : kv.kv_allocated_len].to(torch.int64)))
        pages.append(self.pool.get_all_free_pages())
        every = torch.cat(pages)
        assert len(every) == len(torch.unique(every)) == POOL // self.page, "slots are lost, or handed out twice"
        self._same(device, self.kv, "device")
        if self.host is not None:
            settled = [(n, d) for n, d in values if d.host_value is not None and n.write_through_pending_id is None]
            copies = self.host.kv_buffer[0, 0, :, 0, 0]
            self._same([(node.key.raw_token_ids(), data.host_value) for node, data in settled], copies, "host")
            kept = [data.host_value for _, data in values if data.host_value is not None]
            held = sum(map(len, kept))
            assert held + self.host.available_size() == self.host_size, "slots of the host pool are lost"
            assert not kept or len(torch.unique(torch.cat(kept))) == held
            self.counts["host pool was full"] += self.host.available_size() < 2 * self.page
        for client in self.clients:
            self._check_believed(client)

    def _same(self, parts: list[tuple[array, torch.Tensor]], buffer: torch.Tensor, where: str) -> None:
        """Does each slot hold what was computed for its token?"""
        if parts:
            tokens = torch.tensor(sum((ids for ids, _ in parts), array("q")), dtype=torch.float32)
            wrong = (buffer[torch.cat([slots for _, slots in parts])] != tokens).sum()
            assert not wrong, f"{wrong} slots on the {where} hold another token's KV"

    def _check_believed(self, client: Client) -> None:
        """What a paused program is said to have in the tree is there; all of it, where nobody shares it."""
        program = self.table.programs.get(client.name or "")
        if program is None or program.live or client.branched or len(client.paths) < 1 or len(program.tails) > 1:
            return
        path = client.paths[-1]
        found, believed = self._found(path), min(program.resident, self._aligned(len(path) - 1))
        told = f"{client.name} ({client.kind}, {len(path)} tokens, ending at {program.tails}) is said to have"
        told = f"{told} {program.resident} tokens, there are {found}: {self._seen(path)}"
        assert believed <= found, told
        if client.alone:
            assert believed == found, told
            ends = [node.id for node, _ in self._nodes(path[:-1])]
            assert program.tails == ends[-1:], told
            self.counts["believed exactly"] += 1

    def finale(self) -> None:
        """All requests and programs end: nothing stays locked, and whatever is left can be evicted."""
        while self.scheduler.waiting_queue:
            self.abort_waiting(0)
        for flight in list(self.flights):
            flight.client.alone = False
            if flight.state == "between":
                flight.req.to_finish = None
                self.abort_running(self.flights.index(flight))
            else:
                flight.req.to_finish = flight.req.to_finish or FINISH_ABORT()
                self._finish(flight)
            self.check()
        for client in self.clients:
            if client.name:
                self._event("program_end", client)
        for program in [each.id for each in self.table.programs.values()]:
            self.table.end(program)
        if self.controller is not None:
            self.tree.check_hicache_events()
        self._tick(0, 0)
        self.check()
        self.inspect()
        assert not self.table.programs and not self.keeper.holdings and not self.residency.ending
        assert not self.keeper.leases.tokens and not self.tree.protected_size()
        self.tree.evict(EvictParams(num_tokens=POOL))
        if self.host is not None:
            self.tree.evict_host(2 * POOL)
            assert self.host.available_size() == self.host_size
        assert self.pool.available_size() == POOL
        self.counts["storms"] += 1
        for name, number in {**self.table.counts, **self.keeper.decisions.totals}.items():
            self.counts[f"total: {name}"] += int(number)


OPERATIONS: dict[str, Any] = {name: each for name, each in vars(Storm).items() if hasattr(each, "weight")}


def machine(scheduler: Any, counts: Counter[str]) -> type[RuleBasedStateMachine]:
    """The storm as hypothesis sees it: it chooses what happens, and shrinks what fails."""

    choices: dict[str, Any] = {name: st.sampled_from(values) for name, values in CHOICES.items()}

    class Machine(RuleBasedStateMachine):
        storm: Storm | None = None

        @initialize(**choices)
        def begin(self, **chosen: str) -> None:
            self.storm = Storm(scheduler, counts, chosen)

        def teardown(self) -> None:
            if self.storm is not None:
                self.storm.finale()

    for name, each in OPERATIONS.items():

        def step(self: Any, operation: str = name, **numbers: int) -> None:
            self.storm.do(operation, **numbers)

        given: dict[str, Any] = {number: st.integers(0, most) for number, most in each.most.items()}
        step.__name__ = name
        setattr(Machine, name, rule(**given)(step))
    return Machine


def explore(scheduler: Any, counts: Counter[str], examples: int) -> None:
    """Storms that hypothesis makes up."""
    options = settings(
        max_examples=examples,
        stateful_step_count=100,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    run_state_machine_as_test(machine(scheduler, counts), settings=options)


def replay(scheduler: Any, chosen: dict[str, str], history: Sequence[tuple[str, dict[str, int]]]) -> str:
    """Which failure does a history end in? None is "", its end included."""
    try:
        storm = Storm(scheduler, Counter(), chosen)
        for name, numbers in history:
            storm.do(name, **numbers)
        storm.inspect()
        storm.finale()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return ""


def shrunk(failure: Callable[[list[Any]], str], history: list[Any]) -> list[Any]:
    """A short part of `history` that fails in the same way, but for the numbers."""

    def kind(problem: str) -> str:
        return re.sub("[0-9]+", "0", problem)[:60]

    wanted, size, until = kind(failure(history)), len(history) // 2, time.monotonic() + SHRINK
    while size and time.monotonic() < until:
        before, begin = len(history), 0
        while begin < len(history) and time.monotonic() < until:
            shorter = history[:begin] + history[begin + size :]
            if kind(failure(shorter)) == wanted:
                history = shorter
            else:
                begin += size
        size = 1 if len(history) < before and size < 4 else size // 2
    return history


def storms(scheduler: Any, counts: Counter[str], steps: int, seed: int, told: Callable[[str], None]) -> int:
    """Storms by the dice until `steps` steps are done: as many as were. A failure says how it came about."""
    names, weights = [*OPERATIONS], [each.weight for each in OPERATIONS.values()]
    done, began = 0, time.monotonic()
    for number in range(steps):
        rng = random.Random(f"{seed}.{number}")
        chosen = {name: rng.choice(values) for name, values in CHOICES.items()}
        chosen["retention"] = pick(CHOICES["retention"], number)
        storm, history = Storm(scheduler, counts, chosen), []
        try:
            while storm.steps < (LONG if number % 10 == 9 else STEPS):
                name = rng.choices(names, weights)[0]
                numbers = {key: rng.randint(0, most) for key, most in OPERATIONS[name].most.items()}
                history.append((name, numbers))
                storm.do(name, **numbers)
            storm.finale()
        except BaseException as error:
            told(f"storm {seed}.{number} failed after {storm.steps} steps: {error}")
            fails = functools.partial(replay, scheduler, chosen)
            short = shrunk(fails, history)
            told(f"{chosen}\n" + "".join(f"{step},\n" for step in short) + f"end in: {fails(short)}")
            raise
        done += storm.steps
        if number % 20 == 19:
            told(f"{done} steps, {time.monotonic() - began:.0f} s")
        if done >= steps:
            break
    return done


def run(setup: Setup, steps: int, seed: int, examples: int, starting: Any) -> tuple[Setup, int, Counter[str]]:
    """All storms of one configuration, in this process: it, how many steps they had, and what happened how often."""

    def told(line: str) -> None:
        print(f"page {setup.page}, host {setup.host}: {line}", file=sys.stderr, flush=True)

    def fault(self: Any, where: str) -> None:
        raise

    lifecycle.Engine.fault = fault  # pyright: ignore[reportAttributeAccessIssue]
    flags: dict[str, Any] = {"page_size": setup.page}
    if setup.host != "none":
        flags |= {
            "enable_hierarchical_cache": True,
            "hicache_ratio": HOST_RATIO,
            "hicache_write_policy": setup.host,
            "hicache_io_backend": "direct",
            "hicache_mem_layout": "layer_first",
        }
    with starting:  # SGLang asks for a port that it binds later
        scheduler = build(
            Silent(), schedule_policy="astraea", max_total_tokens=POOL, max_running_requests=ROWS, **flags
        )
    counts: Counter[str] = Counter()
    if examples:
        explore(scheduler, counts, examples)
    explored = sum(counts[name] for name in OPERATIONS)
    done = storms(scheduler, counts, steps - explored, seed, told)
    return setup, explored + done, counts


def main() -> None:
    """Every configuration, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", type=int, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=0, help="storms of each configuration that hypothesis makes up")
    parser.add_argument("--page", type=int, choices=PAGES, help="only this page size")
    parser.add_argument("--host", choices=HOSTS, help="only this use of the host pool")
    given = parser.parse_args()
    torch.set_num_threads(1)
    load_plugins()
    pages, hosts = [given.page] if given.page else PAGES, [given.host] if given.host else HOSTS
    setups = [Setup(page, host) for page in pages for host in hosts]
    fork = multiprocessing.get_context("fork")
    steps = -(-given.steps // len(setups))
    with fork.Manager() as manager, fork.Pool(2, maxtasksperchild=1) as workers:
        starting = manager.Lock()
        each = [(setup, steps, given.seed, given.examples, starting) for setup in setups]
        for setup, done, counts in workers.starmap(run, each, chunksize=1):
            happened = ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
            print(f"{setup.page} {setup.host} {done}: {happened}", flush=True)


if __name__ == "__main__":
    main()
