"""How much KV has a paused program left? Heard from the radix tree as it evicts, without a look-up of its path.

Looking a path up would make it recent, so that paused programs would look as used as running ones.
"""

from typing import Any

from astraea_sglang.program import Program
from astraea_sglang.table import ProgramTable


class Residency:
    """The tree nodes at which the paths of paused programs end. Their ids are only compared, never used on the tree."""

    def __init__(self, table: ProgramTable) -> None:
        self._table = table
        self._ending: dict[Any, dict[str, Program]] = {}  # by node

    def finished(self, program: Program, node: Any) -> None:
        """A segment ended at `node`, and its program goes on."""
        self.forget(program)
        self._end(program, node)

    def forget(self, program: Program) -> None:
        """A program runs again, or is over: its path is nobody's."""
        ending = self._ending.get(program.tail)
        if ending is not None and ending.pop(program.key, None) and not ending:
            del self._ending[program.tail]
        program.tail = None

    def evicting(self, tree: Any, node: Any) -> None:
        """The `tree` core is about to evict the leaf `node` (which exists still)."""
        ending = self._ending.pop(node, None)
        if ending is None:
            return
        ((*_, last),) = tree.collect_path_info([node])
        for program in ending.values():
            self._table.evicted(program, last.path_start)
            program.tail = None
            if last.path_start:
                self._end(program, last.parent_id)

    def clear(self) -> None:
        """The tree was emptied."""
        for program in self._table.programs.values():
            self._table.evicted(program, 0)
            program.tail = None
        self._ending.clear()

    def _end(self, program: Program, node: Any) -> None:
        program.tail = node
        self._ending.setdefault(node, {})[program.key] = program


def evicting(cache: Any, node_id: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE UnifiedRadixCache._evict_device_leaf: tell a program's KV goes. With a host pool it only moves there."""
    engine = getattr(cache, "astraea", None)
    if engine is not None and cache.cache_controller is None:
        try:
            engine.residency.evicting(cache.tree_core, node_id)
        except Exception:
            engine.fault("evicting")


def emptied(cache: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE UnifiedRadixCache.reset: every program's KV is gone."""
    engine = getattr(cache, "astraea", None)
    if engine is not None:
        engine.residency.clear()
