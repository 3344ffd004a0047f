"""How much KV has a paused program left? Heard from the radix tree as it evicts, without a look-up of its path.

Looking a path up would make it recent, so that paused programs would look as used as running ones.
"""

from typing import Any

from astraea_sglang.program import Program
from astraea_sglang.table import ProgramTable


class Residency:
    """The tree nodes at which the paths of programs end. A program has one; node ids are only compared, never used."""

    def __init__(self, table: ProgramTable) -> None:
        self._table = table
        self._programs: dict[Any, Program] = {}
        self._paths: dict[str, list[tuple[Any, int]]] = {}  # by program, of those that lose KV: (node, tokens above it)

    def finished(self, program: Program, node: Any) -> None:
        """A segment ended at `node`, and its program goes on."""
        self.forget(program)
        program.tail = node
        self._programs[node] = program

    def forget(self, program: Program) -> None:
        """A program runs again, or is over: its path is nobody's."""
        if self._programs.get(program.tail) is program:
            del self._programs[program.tail]
        self._paths.pop(program.key, None)
        program.tail = None

    def evicting(self, tree: Any, node: Any) -> None:
        """The `tree` core is about to evict the leaf `node` (which exists still)."""
        program = self._programs.pop(node, None)
        if program is None:
            return
        path = self._paths.get(program.key)
        if path is None:
            (nodes,) = tree.collect_path_info([node])
            path = self._paths[program.key] = [(n.node_id, n.path_start) for n in nodes]
        while path and path[-1][0] != node:
            path.pop()
        if not path:  # the path was split since
            return self.forget(program)
        _, above = path.pop()
        self._table.evicted(program, above)
        program.tail = path[-1][0] if path else None
        if program.tail is not None:
            self._programs.setdefault(program.tail, program)

    def clear(self) -> None:
        """The tree was emptied."""
        for program in self._table.programs.values():
            self._table.evicted(program, 0)
            program.tail = None
        self._programs.clear()
        self._paths.clear()


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
