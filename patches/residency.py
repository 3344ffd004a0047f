"""Whose path ends where in the radix tree, and how much of it is left? Heard from the tree as its nodes go.

Looking a path up would make it recent, so that paused programs would look as used as running ones.
"""

from collections.abc import Iterable
from typing import Any

from astraea_sglang.program import Program
from astraea_sglang.table import ProgramTable

MAX_TAILS = 8  # parallel branches of a program that are remembered; further ones are nobody's, and evicted first


class Residency:
    """The tree nodes at which programs' paths end, by id; a program has one for each of its branches, latest last."""

    def __init__(self, table: ProgramTable) -> None:
        self._table = table
        self.ending: dict[int, dict[str, Program]] = {}  # by node
        self.shared: set[int] = set()  # nodes that several programs have used

    def finished(self, program: Program, node: int, above: Iterable[int]) -> None:
        """A segment ended at `node`; a branch that ended at one of the nodes `above` it has grown."""
        tails = program.tails
        if tails:
            if node in tails:
                self._leave(program, node)
            for grown in above:
                if grown in tails:
                    self._leave(program, grown)
        self._end(program, node)
        if len(tails) > MAX_TAILS:
            self._leave(program, tails[0])

    def forget(self, program: Program) -> None:
        """A program is over: its paths are nobody's."""
        for node in list(program.tails):
            self._leave(program, node)

    def gone(self, node: int, parent: int | None, depth: int) -> None:
        """The tree has given up `node`; what is left ends at `parent` (None: at the root), after `depth` tokens."""
        self.shared.discard(node)
        for program in list(self.ending.get(node, {}).values()):
            latest = program.tails[-1] == node
            others = len(program.tails) - 1
            self._leave(program, node)
            if latest:
                self._table.evicted(program, depth)
            if parent is not None and (latest or not others):
                self._end(program, parent)

    def clear(self) -> None:
        """The tree was emptied."""
        for program in self._table.programs.values():
            self._table.evicted(program, 0)
            program.tails.clear()
        self.ending.clear()
        self.shared.clear()

    def owners(self, node: int) -> dict[str, Program] | None:
        """Which programs' paths end at `node`, by key? None if nobody's does."""
        return self.ending.get(node)

    def _end(self, program: Program, node: Any) -> None:
        if node in program.tails:
            program.tails.remove(node)
        program.tails.append(node)
        self.ending.setdefault(node, {})[program.key] = program

    def _leave(self, program: Program, node: Any) -> None:
        program.tails.remove(node)
        ending = self.ending[node]
        del ending[program.key]
        if not ending:
            del self.ending[node]
