"""The radix tree as retention layer: SGLang's own, which tells what it loses and takes first what is wanted latest.

Its core is SGLang's Python one, not the Rust one (README, "Decisions"): there a node can be asked what may be done with
it before it is done, and an illegal step raises before anything is changed. On the Rust core it ends the server.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from sglang.srt.mem_cache.base_prefix_cache import EvictParams, EvictResult
from sglang.srt.mem_cache.evict_policy import LRUStrategy
from sglang.srt.mem_cache.registry import create_unified_radix_cache, register_radix_cache_backend
from sglang.srt.mem_cache.unified_cache.cache_action import BackupKV
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.tree_core_registry import register_tree_core_backend
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeCore
from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import DriveHostEvictionResult
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.runtime_context import get_memory

from astraea_sglang.patches.args import POLICY
from astraea_sglang.patches.eviction import NextUse, RankedFull
from astraea_sglang.program import Program


class AstraeaTreeCore(UnifiedTreeCore):
    """SGLang's Python tree core, which tells of each node that goes."""

    lost: Callable[[int, int | None, int], None] | None = None
    epoch = 0  # grows every RERANK seconds

    def _unregister_node(self, node: Any) -> None:
        if self.lost is not None:
            above = node.parent if node.parent is not self.root_node else None
            self.lost(node.id, above and above.id, self.depth(above) if above else 0)
        super()._unregister_node(node)

    def alive(self, node_id: int) -> Any:
        """The node of this id; None when it is gone."""
        return self._node_arena.get(node_id)

    def up(self, node: Any) -> Iterator[Any]:
        """The nodes from `node` to the root, which is left out."""
        while node is not None and node is not self.root_node:
            yield node
            node = node.parent

    def depth(self, node: Any) -> int:
        """How many tokens does the path to `node` have?"""
        return sum(len(each.key) for each in self.up(node))


class AstraeaRadixCache(UnifiedRadixCache):
    """SGLang's unified radix cache with the parts above. Without an engine of ours it is what it inherits."""

    engine: Any = None
    tree_core: Any
    components: Any
    cache_controller: Any
    copied: Callable[[int, float], None] = staticmethod(lambda tokens, seconds: None)  # hears of copies to the host

    def __init__(self, params: Any) -> None:
        params.tree_core_backend = POLICY
        params.component_registry_override = {
            **(params.component_registry_override or {}),
            ComponentType.FULL: RankedFull,
        }
        self.leaving: dict[int, list[int]] = {}  # nodes on their way to the host, from the end; by the path's end
        self.loading = False  # a path is being loaded that no lock yields to
        self.loaded = -1  # the last load that no batch has waited for, by its index in SGLang's counter
        self.unfreed: dict[int, tuple[Program, int]] = {}  # nodes to be freed once they have been copied
        super().__init__(params)

    @property
    def retains(self) -> bool:
        """Can paths be kept and freed here? Not where a path has more than one kind of state (Mamba, SWA)."""
        return self.tree_components == (ComponentType.FULL,) and not self.disable

    def attach(self, engine: Any, ranked: bool) -> None:
        """From now on `engine` hears what the tree loses; with `ranked` its programs' next use decides what goes."""
        self.engine = engine
        self.tree_core.lost = self._lost
        if ranked and isinstance(self.tree_core.eviction_strategy, LRUStrategy):
            self.tree_core.eviction_strategy = NextUse(engine)
            self.components[ComponentType.FULL].rank()

    def ends(self, program: Program, node: int | None) -> None:
        """A segment of `program` is over, its path ends at `node`."""
        end = self.tree_core.alive(node) if node is not None else None
        if end is not None and end is not self.tree_core.root_node:
            above = (each.id for each in self.tree_core.up(end.parent))
            self.engine.residency.finished(program, end.id, above)
            self.wanted(program)

    def remains(self, program: Program) -> int:
        """How many tokens of a program's latest path are there?"""
        return self.tree_core.depth(self.tree_core.alive(program.tails[-1])) if program.tails else 0

    def _lost(self, node: int, parent: int | None, depth: int) -> None:
        try:
            self.engine.residency.gone(node, parent, depth)
        except Exception:
            self.engine.fault("evicting")

    def reset(self) -> None:
        """The tree is emptied: SGLang's `flush_cache`."""
        super().reset()
        self.leaving.clear()
        self.unfreed.clear()
        if self.engine is not None:
            if self.engine.keeper is not None:
                self.engine.keeper.cleared()
            self.engine.residency.clear()

    def evict_for_alloc(self, params: EvictParams, **kwargs: Any) -> EvictResult:
        """As SGLang's; where that is not enough, locks of paused programs yield before anything is retracted."""
        wanted = self.token_to_kv_pool_allocator.available_size() + params.num_tokens
        result = super().evict_for_alloc(params, **kwargs)
        keeper = self.engine.keeper if self.engine is not None else None
        while keeper is not None and keeper.leases.held and not self.loading:
            short = wanted - self.token_to_kv_pool_allocator.available_size()
            if short <= 0 or not keeper.give_way(short):
                break
            more = super().evict_for_alloc(EvictParams(num_tokens=short), **kwargs)
            result.num_tokens_evicted += more.num_tokens_evicted
        return result

    def _log_write_ack_metrics(self, ack: Any) -> None:
        super()._log_write_ack_metrics(ack)
        if ack.timing_enabled:
            tokens = sum((ack.num_tokens_by_pool or {}).values())
            self.copied(tokens, ack.start_event.elapsed_time(ack.finish_event) / 1000)

    # --- keeper.Tree ---

    @property
    def copies(self) -> bool:
        """Is there a host pool to swap to?"""
        return self.cache_controller is not None and self.host_memory_mode == "cache"

    def pin(self, node: int, most: int) -> tuple[Any, int]:
        """Lock the path to `node` or the part of it that takes `most` tokens: the lock (or None), and its tokens."""
        end = self.tree_core.alive(node)
        path = list(self.tree_core.up(end))
        tokens = sum(len(each.key) for each in path)
        most -= most % self.page_size
        for each in path:
            start = tokens - len(each.key)
            if start < most < tokens and not each.evicted:
                each, tokens = self._split(each, most - start), most
            if tokens <= most and not each.evicted:
                return self.lock(each.id), tokens
            tokens = start
        return None, 0

    def unpin(self, pin: Any) -> None:
        """Unlock what `pin` locked."""
        self.unlock(pin)
        self.components[ComponentType.FULL].offer(self.tree_core.alive(pin.node))

    def wanted(self, program: Program) -> None:
        """When a program will want its KV again has changed."""
        for node in program.tails:
            self.components[ComponentType.FULL].offer(self.tree_core.alive(node))

    def _split(self, node: Any, tokens: int) -> Any:
        """Let the first `tokens` of `node`, whole pages, be a node of their own: that one."""
        above, action = self.tree_core._split_node(node.key, node, tokens)
        self._apply_cache_actions([] if action is None else [action])
        return above

    def _own(self, program: Program, node: int, kept: int) -> Iterator[Any]:
        """The nodes from `node` upwards that no other program's path ends at, beyond `kept` tokens; one at a time."""
        core, ending = self.tree_core, self.engine.residency.ending
        kept -= kept % self.page_size
        each = core.alive(node)
        below = core.depth(each)
        while each is not None and each is not core.root_node:
            above, start = each.parent, below - len(each.key)
            if start < kept < below:  # what was evicted and computed again as a whole has no boundary there
                above, start = self._split(each, kept - start), kept
            if start < kept:
                if program.shared:
                    self.engine.residency.shared.add(each.id)
                return
            if core.alive(each.id) is None or any(other is not program for other in ending.get(each.id, {}).values()):
                return
            yield each
            each, below = above, start

    def free(self, program: Program, node: int, kept: int) -> int:
        """Free the program's path from its end, up to `kept` tokens or the first node not its own: tokens freed."""
        core, freed = self.tree_core, 0
        for each in self._own(program, node, kept):
            tokens, tracker = len(each.key), dict.fromkeys(self.tree_components, 0)
            if each.children:  # of others, if only on the host
                return freed
            if each in core.evictable_device_leaves:
                if self.cache_controller is not None and self.is_write_back and not each.backuped:
                    self._drop_subtree_no_host(each.id, tracker)
                else:
                    self._evict_device_leaf(each.id, tracker)
            if each in core.evictable_host_leaves:
                result = DriveHostEvictionResult()
                frees = result.tracker, result.device_frees, result.host_frees
                core._evict_host_leaf(each, *frees, cache_actions=result.cache_actions)
                self._apply_eviction_result(result)
            if core.alive(each.id) is not None:
                if each.write_through_pending_id is not None or each.load_back_pending_id is not None:
                    self.unfreed[each.id] = program, kept  # a copy of it is under way
                return freed
            freed += tokens
        return freed

    def demote(self, program: Program, node: int, kept: int) -> int:
        """Begin to move the same part of the path to the host: tokens to be moved."""
        core = self.tree_core
        unbacked = [each.id for each in core.up(core.alive(node)) if not each.backuped and not each.evicted]
        if not self.copies:
            return 0
        if node in self.leaving:
            return sum(len(each.key) for each in map(core.alive, self.leaving[node]) if each is not None)
        if unbacked:
            began = time.perf_counter()
            if not self._execute_and_commit_kv_backup(BackupKV(node_ids=unbacked[::-1])):
                return 0
            self.flush_pending_backups()
            acks = self.cache_controller.ack_write_queue
            if acks and not acks[-1].timing_enabled:  # no streams, as on a CPU: the copy is made
                self.copied(sum(len(core.alive(each).key) for each in unbacked), time.perf_counter() - began)
        others = {each for path in self.leaving.values() for each in path}
        moved = [each for each in self._own(program, node, kept) if not each.evicted and each.id not in others]
        self.leaving[node] = [each.id for each in moved]
        self._leave(node)
        under_way = self.leaving.get(node, ())
        return sum(len(each.key) for each in moved if each.evicted or each.id in under_way)

    def check_hicache_events(self) -> None:
        """Once a pass, copies that are made are noticed."""
        super().check_hicache_events()
        self._settle()

    def _settle(self) -> None:
        """Give up on the device what has arrived on the host, each path from its end; free what waited for a copy."""
        for node, (program, kept) in list(self.unfreed.items()):
            del self.unfreed[node]
            if not program.live and self.tree_core.alive(node) is not None:
                self.free(program, node, kept)
        for node in list(self.leaving):
            self._leave(node)

    def _leave(self, node: int) -> None:
        moved = self.leaving[node]
        while moved:
            each = self.tree_core.alive(moved[0])
            if each is not None and not each.evicted:
                if each.write_through_pending_id is not None:
                    return  # under way
                if each not in self.tree_core.evictable_device_leaves or not each.backuped:
                    break  # in use again
                self._evict_device_leaf(each.id, dict.fromkeys(self.tree_components, 0))
            moved.pop(0)
        del self.leaving[node]

    def load(self, node: int) -> int:
        """Begin to move the path back to the device: tokens to be moved."""
        self.leaving.pop(node, None)
        core = self.tree_core
        away = [each for each in core.up(core.alive(node)) if each.evicted]
        tokens = sum(len(each.key) for each in away)
        room = self.token_to_kv_pool_allocator.available_size() + self.evictable_size()
        if not tokens or tokens > room or not self.has_free_load_back_slot():
            return 0
        self.loading = True
        try:
            loaded = self.load_back(node)
        finally:
            self.loading = False
        if not loaded:
            return 0
        self.loaded = super().ready_to_load_host_cache()
        return tokens

    def ready_to_load_host_cache(self) -> int:
        """Which load does the next prefill batch wait for? Its own, or one begun ahead of it: copies end in order."""
        ahead, self.loaded = self.loaded, -1
        own = super().ready_to_load_host_cache()
        return ahead if own < 0 else own


def build(ctx: Any) -> Any:
    """The cache that `--radix-cache-backend astraea` names, and that is chosen with `--schedule-policy astraea`."""
    return create_unified_radix_cache(ctx, cache_class=AstraeaRadixCache)


def chosen(original: Callable[..., Any], ctx: Any, *, cache_class: Any = None) -> Any:
    """AROUND registry.create_unified_radix_cache: with our policy SGLang's own choice of cache becomes ours."""
    ours = ctx.server_args.schedule_policy == POLICY and not get_memory().enable_unified_cache_external_linker
    return original(ctx, cache_class=cache_class or (AstraeaRadixCache if ours else None))


def register() -> None:
    """Make our cache known to this process, under the name of our policy."""
    register_tree_core_backend(POLICY, AstraeaTreeCore)
    register_radix_cache_backend(POLICY, build)
