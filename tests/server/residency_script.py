"""Programs whose KV a real radix tree evicts at random: what we heard against what the tree holds. Prints checks."""

import logging
import random
import warnings
from array import array
from typing import Any

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

import torch  # noqa: E402
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams  # noqa: E402
from sglang.srt.mem_cache.radix_cache import RadixKey  # noqa: E402
from sglang.srt.plugins import load_plugins  # noqa: E402

from astraea_sglang.bench import device  # noqa: E402
from astraea_sglang.hints import Hints  # noqa: E402
from astraea_sglang.patches.peer import Peer  # noqa: E402
from astraea_sglang.patches.virtual import build  # noqa: E402

SHARED = 50  # tokens that every other program begins with


def main() -> None:
    load_plugins()
    peer = Peer([], device.load("h200-llama3.1-8b"), "class", lambda seconds, programs: None)
    scheduler: Any = build(peer, schedule_policy="astraea", max_total_tokens=2000, max_running_requests=8)
    tree, pool, engine = scheduler.tree_cache, scheduler.token_to_kv_pool_allocator, scheduler.astraea
    rng = random.Random(1)
    paths: dict[str, array] = {}

    def matched(ids: array) -> tuple[int, object]:
        result = tree.match_prefix(MatchPrefixParams(key=RadixKey(ids, None)))
        return result.device_prefix_len, result.last_device_node

    def segment(name: str) -> None:
        """A program computes 20 to 120 tokens more, as a finished request leaves them in the tree."""
        ids = paths.setdefault(name, array("q", [1] * SHARED * (int(name) % 2)))
        ids.extend([10 + int(name)] * rng.randrange(20, 120))
        arrived = engine.table.arrive(f"{name} {len(ids)}", Hints(program_id=name), len(ids), 1)
        engine.residency.forget(arrived.program)
        present, _ = matched(ids)
        if pool.available_size() < len(ids) - present:
            tree.evict(EvictParams(num_tokens=len(ids) - present))
        present, node = matched(ids)
        lock = tree.lock(node)
        value = torch.cat([tree.path_device_indices(node)[:present], pool.alloc(len(ids) - present)])
        tree.insert(InsertParams(key=RadixKey(ids, None), value=value, prev_prefix_len=present))
        tree.unlock(lock)
        engine.table.start(arrived, len(ids) - present)
        engine.table.finish(arrived)
        engine.residency.finished(arrived.program, matched(ids)[1])

    checks = exact = 0
    for _ in range(600):
        segment(str(rng.randrange(12)))
        if rng.random() < 0.3:
            tree.evict(EvictParams(num_tokens=rng.randrange(1, 400)))
        for name, ids in paths.items():
            checks += 1
            heard, held = engine.table.programs[name].resident, matched(ids)[0]
            exact += heard == held
            assert heard == held or (int(name) % 2 and abs(heard - held) <= SHARED), (name, heard, held)
        if rng.random() < 0.05:  # a program ends: nothing of it is kept
            ended = rng.choice(sorted(paths))
            del paths[ended]
            engine.table.end(ended)
        ending = [name for names in engine.residency._ending.values() for name in names]
        assert len(ending) == len(set(ending)) and set(ending) <= set(paths), ending
        if paths and len(max(paths.values(), key=len)) > 900:
            paths.clear()
            tree.reset()
            pool.clear()
            assert all(program.resident == 0 for program in engine.table.programs.values())
    print(checks, exact, engine.table.counts["faults"])


main()
