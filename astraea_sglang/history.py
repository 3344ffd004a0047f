"""What followed a node of a program class so far? A Markov chain per class, learned from every segment as it ends.

A *node* is a place in a program: a declared structure's node and which visit of it this is (`visit`) or, without one,
how many segments came before (`position`). Learning from each step, not from whole programs, needs no trace of them and
is not misled by the fact that short ones end first. Old observations fade; memory is bounded whatever clients send.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

MEMORY = 64.0  # observations of a node: beyond, old ones fade
PRIOR_WEIGHT = 2.0  # observations that a prior counts for
MAX_NODES = 16_384  # over all classes; 2 KiB each at most
MAX_CLASS_NODES = 256
MAX_NEXT = 8  # successors of one node
SWEEPS = 8  # enough for a chain (one) and for loops to within a few percent
EDGES = 4096  # from node to node, gone over in one solution: about 2 ms
MAX_DUMPED = 4096  # nodes: what is written to a file holds the scheduler up
SHORT = 32  # characters
OTHER = "..."  # what followed has no node of its own, as its class has too many
MOST = 1e9  # tokens or segments: no prediction is larger
FORMAT = 1


class Rest(NamedTuple):
    """What a program still does after a segment: segments, prompt tokens never computed before, generated tokens."""

    segments: float
    new: float
    output: float


END = Rest(0.0, 0.0, 0.0)


def position(segments: int) -> str:
    """Which node is a segment that `segments` came before, in a program without declared structure?"""
    return f"#{_coarse(segments)}"


def visit(node: str, visits: int) -> str:
    """Which node is the `visits`-th segment of a program at a declared one? A loop is learned round by round."""
    return f"{_short(node)}@{_coarse(visits)}"


def _coarse(count: int) -> int:
    """Up to 32 each count for itself, then each power of two for all up to the next."""
    return count if count < 32 else 1 << (count.bit_length() - 1)


class _Node:
    """One node's observations; `rest` is what the chain makes of them."""

    __slots__ = ("ended", "label", "new", "news", "next", "output", "outputs", "rest")

    def __init__(self, label: str) -> None:
        self.label = label  # the one string that stands for it everywhere
        self.next: dict[str, float] = {}
        self.ended = self.news = self.new = self.outputs = self.output = 0.0
        self.rest: Rest | None = None

    @property
    def outcomes(self) -> float:
        return self.ended + sum(self.next.values())

    def follow(self, node: str | None) -> None:
        if node is None:
            self.ended += 1
        elif node in self.next or len(self.next) < MAX_NEXT:
            self.next[node] = self.next.get(node, 0.0) + 1
        if self.outcomes > MEMORY:
            self.ended /= 2
            self.next = {name: count / 2 for name, count in self.next.items() if count > 0.1}


class _Class:
    __slots__ = ("nodes", "output", "outputs", "stale")

    def __init__(self) -> None:
        self.nodes: dict[str, _Node] = {}
        self.outputs = self.output = 0.0
        self.stale = 0

    def solve(self) -> None:
        """Work out what follows each node. Clients choose the nodes, so the work is bounded, too."""
        edges = sum(len(node.next) for node in self.nodes.values()) + 1
        for _ in range(max(1, min(SWEEPS, EDGES // edges))):
            moved = [self.back_up(node) for node in reversed(self.nodes.values())]
            if not any(moved):
                break
        self.stale = 0

    def back_up(self, node: _Node) -> bool:
        """Rest = the mean over what followed of what that took and its own rest. Did it change?

        Of a node that nobody left yet it is one segment more, as the class's are.
        """
        outcomes = node.outcomes
        weight = 0.0 if outcomes else 1.0
        segments, new, output = weight, weight * node.new, weight * self.output
        for name, count in node.next.items():
            after = self.nodes.get(name)
            if after is None:
                continue
            rest = after.rest or END
            if after is node:  # the same again: solved for, not swept
                rest, outcomes = END, outcomes - count
            segments += count * (1 + rest.segments)
            new += count * (after.new + rest.new)
            output += count * (after.output + rest.output)
        total = outcomes + weight or 1.0
        before = node.rest
        now = node.rest = Rest(min(segments / total, MOST), min(new / total, MOST), min(output / total, MOST))
        return before is None or (
            abs(now.segments - before.segments) > 0.01 * now.segments
            or abs(now.new - before.new) > 0.01 * now.new
            or abs(now.output - before.output) > 0.01 * now.output
        )


class History:
    """Every class's chain. The class unseen for longest is forgotten when memory is full."""

    def __init__(self) -> None:
        self._classes: dict[str, _Class] = {}
        self._nodes = 0

    def arrived(self, program_class: str, before: str | None, node: str, new: int) -> None:
        """A segment came at `node`, after `before` (None: the program's first), with `new` tokens never computed."""
        chain = self._touch(program_class)
        here = self._node(chain, node)
        if before is not None and (last := self._node(chain, before)) is not None:
            last.follow(here.label if here else OTHER)
        if here is not None:
            here.news = min(here.news + 1, MEMORY)
            here.new += (new - here.new) / here.news

    def generated(self, program_class: str, node: str, tokens: int) -> None:
        """A segment at `node` generated `tokens`."""
        chain = self._touch(program_class)
        chain.outputs = min(chain.outputs + 1, MEMORY)
        chain.output += (tokens - chain.output) / chain.outputs
        if (here := self._node(chain, node)) is not None:
            here.outputs = min(here.outputs + 1, MEMORY)
            here.output += (tokens - here.output) / here.outputs

    def ended(self, program_class: str, node: str) -> None:
        """A program ended after `node`."""
        chain = self._touch(program_class)
        if (here := self._node(chain, node)) is not None:
            here.follow(None)

    def output(self, program_class: str, node: str, prior: float) -> float:
        """How many tokens does a segment at `node` generate?

        The node's mean, pulled to its class's, and that to `prior`, the fewer observations there are the more.
        """
        chain = self._classes.get(_short(program_class))
        if chain is None:
            return prior
        mean = _pulled(chain.output, chain.outputs, prior)
        here = chain.nodes.get(node)
        return mean if here is None else _pulled(here.output, here.outputs, mean)

    def rest(self, program_class: str, node: str, prior: Rest) -> Rest:
        """What follows a segment at `node`? The asker's own `prior` counts for PRIOR_WEIGHT observations.

        It is for this answer alone: what one client declares changes no prediction of another's.
        """
        chain = self._classes.get(_short(program_class))
        here = chain.nodes.get(node) if chain is not None else None
        if chain is None or here is None:
            return prior
        if chain.stale * 16 >= max(min(chain.outputs, MEMORY), 2 * len(chain.nodes)):
            chain.solve()
        elif here.rest is None:
            chain.back_up(here)
        learned, seen = here.rest or END, here.outcomes
        return Rest(
            min(_pulled(learned.segments, seen, prior.segments), MOST),
            min(_pulled(learned.new, seen, prior.new), MOST),
            min(_pulled(learned.output, seen, prior.output), MOST),
        )

    def dump(self) -> dict[str, Any]:
        """What was learned of the classes seen last, MAX_DUMPED nodes in all, JSON-ready: what `load` reads back."""
        kept: list[tuple[str, Any]] = []
        nodes = 0
        for name, chain in reversed(self._classes.items()):
            nodes += len(chain.nodes)
            if nodes > MAX_DUMPED:
                break
            rows = {node: [n.ended, n.news, n.new, n.outputs, n.output, n.next] for node, n in chain.nodes.items()}
            kept.append((name, {"outputs": chain.outputs, "output": chain.output, "nodes": rows}))
        return dict(reversed(kept))

    def load(self, dumped: Any) -> None:
        """Take what `dump` gave. Raises ValueError, KeyError or TypeError when it is something else, and takes none."""
        classes: dict[str, _Class] = {}
        for name, kept in _items(dumped):
            chain = classes[name] = _Class()
            chain.outputs, chain.output = (_amount(kept[key]) for key in ("outputs", "output"))
            chain.stale = int(MEMORY)
            for label, row in _items(kept["nodes"]):
                node = chain.nodes[label] = _Node(label)
                node.ended, node.news, node.new, node.outputs, node.output = map(_amount, row[:5])
                node.next = {after: _amount(count) for after, count in _items(row[5])}
        self._classes, self._nodes = classes, sum(len(chain.nodes) for chain in classes.values())
        self._forget()

    def _touch(self, program_class: str) -> _Class:
        name = _short(program_class)
        chain = self._classes.pop(name, None) or _Class()
        self._classes[name] = chain
        chain.stale += 1
        return chain

    def _node(self, chain: _Class, node: str) -> _Node | None:
        if (here := chain.nodes.get(node)) is None and len(chain.nodes) < MAX_CLASS_NODES:
            here = chain.nodes[node] = _Node(node)
            self._nodes += 1
            self._forget()
        return here

    def _forget(self) -> None:
        while self._nodes > MAX_NODES and len(self._classes) > 1:
            self._nodes -= len(self._classes.pop(next(iter(self._classes))).nodes)


def _short(name: str) -> str:
    """Names are clients', and kept: a long one by its digest."""
    return name if len(name) <= SHORT else hashlib.blake2s(name.encode(), digest_size=16).hexdigest()


def _pulled(mean: float, count: float, prior: float) -> float:
    return (count * mean + PRIOR_WEIGHT * prior) / (count + PRIOR_WEIGHT)


def _items(value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        raise ValueError(f"an object was expected, not {type(value).__name__}")
    return list(value.items())


def _amount(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST or math.isnan(value):
        raise ValueError(f"a number from 0 to {MOST:g} was expected, not {value!r}")
    return float(value)
