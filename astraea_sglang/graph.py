"""Where can a program go from each node of its structure, and how often? A graph of visits, loops bounded.

The ways back to a loop from its body are cut, and a way into a body from outside leads to its loop: so it is acyclic.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from astraea_sglang.errors import HintError

MAX_WAYS = 1024  # ids in all `next` lists together
MAX_LOOPS = 32
MAX_VISITS = 1e6
RARE = 1e-12  # visits: what is declared can happen, even in a loop of 0 expected rounds

KINDS = {
    "segment": ("max_tokens", "expected_tokens", "new_tokens"),
    "tool": ("tool", "expected_s"),
    "loop": ("body", "most", "expected"),
    "fork": (),
    "join": (),
}


@dataclass(frozen=True, slots=True)
class Node:
    """What does the client declare of one node? None is unknown; fields of other kinds keep their defaults."""

    id: str
    kind: str
    next: tuple[str, ...] = ()
    max_tokens: int | None = None
    expected_tokens: float | None = None
    new_tokens: float = 0.0
    tool: str = ""
    expected_s: float | None = None
    body: str = ""
    most: int = 0
    expected: float = 0.0


class _Way(NamedTuple):
    """Where does a program go from a node, and how often per visit? `leaves`: the loops that it breaks out of."""

    to: int
    usual: float
    most: float
    leaves: tuple[int, ...]


class Graph:
    """How do visits flow through the nodes? Nodes are indices here. Raises HintError where they form no program."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.index = _index(nodes)
        onward = [[self._find(node, "next", name) for name in node.next] for node in nodes]
        bodies = {i: self._find(node, "body", node.body) for i, node in enumerate(nodes) if node.kind == "loop"}
        self.inside = _nest(nodes, onward, bodies)  # of each loop, an outer one before its inner ones: it and its body
        self.within = [[loop for loop, body in self.inside.items() if i in body] for i in range(len(nodes))]
        self.root = self.within[0][0] if self.within[0] else 0
        self.ways = [self._ways(i, onward[i], bodies.get(i)) for i in range(len(nodes))]
        targets = [[way.to for way in ways] for ways in self.ways]
        self.order = _sorted(targets)
        below = _below(self.order, targets)
        nexts = {loop: targets[loop][:-1] for loop in bodies}  # the last way is its body
        self.exits = {loop: _bits(set(to).union(*(below[i] for i in to))) for loop, to in nexts.items()}
        self.below = [_bits(nodes) for nodes in below]
        self.width = [int(node.kind == "segment") for node in nodes]
        self.forks: list[list[int]] = [[] for _ in nodes]  # whose branches meet at the node
        for i in reversed(self.order):
            if nodes[i].kind == "fork":
                self._fork(i, [{to} | below[to] for to in targets[i]])

    def flow(self, root: int) -> tuple[list[float], list[float]]:
        """How often is each node visited, usually and at most, by a program that is at `root`? A loop: entered."""
        usual, most = [0.0] * len(self.nodes), [0.0] * len(self.nodes)
        usual[root] = most[root] = 1.0
        for i in self.order:
            if not most[i]:
                continue
            forked = max((usual[fork] for fork in self.forks[i]), default=0.0) or MAX_VISITS
            usual[i] = max(RARE, min(usual[i], most[i], forked))
            for to, share, most_share, leaves in self.ways[i]:
                usual[to] += min([usual[i] * share, *(usual[loop] for loop in leaves)])
                most[to] = max(most[to], min([most[i] * most_share, MAX_VISITS, *(most[loop] for loop in leaves)]))
        return usual, most

    def rounds(self, loop: int, usual: Sequence[float], most: Sequence[float]) -> tuple[float, float]:
        """How many rounds does a loop make in such a flow, usually and at most?"""
        at_most = min(most[loop] * self.nodes[loop].most, MAX_VISITS)
        return max(RARE, min(usual[loop] * self.nodes[loop].expected, at_most)), at_most

    def _find(self, node: Node, key: str, name: str) -> int:
        if name not in self.index:
            raise HintError(f"node {node.id!r}: {key} names {name[:40]!r}; send the id of a node")
        return self.index[name]

    def _ways(self, i: int, onward: Sequence[int], body: int | None) -> list[_Way]:
        node = self.nodes[i]
        share = 1.0 if node.kind == "fork" else 1 / max(1, len(onward))
        rounds = [] if body is None else [(body, node.expected, float(node.most))]
        ways = []
        for to, usual, most in [*((to, share, 1.0) for to in onward), *rounds]:
            if to in self.inside and i in self.inside[to]:
                continue  # the way back
            leaves = tuple(loop for loop in self.within[i] if loop != i and to not in self.inside[loop])
            enters = next((loop for loop in self.within[to] if i not in self.inside[loop]), to)
            ways.append(_Way(enters, usual, most, leaves))
        return ways

    def _fork(self, fork: int, branches: Sequence[set[int]]) -> None:
        seen, shared = set(), set()
        for branch in branches:
            shared |= seen & branch
            seen |= branch
        for i in shared:
            if self.nodes[i].kind == "join":
                self.forks[i].append(fork)
        self.width[fork] = sum(max((self.width[i] for i in branch - shared), default=0) for branch in branches)


def _index(nodes: Sequence[Node]) -> dict[str, int]:
    index: dict[str, int] = {}
    for i, node in enumerate(nodes):
        if index.setdefault(node.id, i) != i:
            raise HintError(f"node {node.id!r}: two nodes have this id; send each id once")
    if (ways := sum(len(node.next) for node in nodes)) > MAX_WAYS:
        raise HintError(f"the structure's next lists hold {ways} ids; send at most {MAX_WAYS}")
    if (loops := sum(node.kind == "loop" for node in nodes)) > MAX_LOOPS:
        raise HintError(f"the structure has {loops} loops; send at most {MAX_LOOPS}")
    return index


def _nest(nodes: Sequence[Node], onward: Sequence[list[int]], bodies: Mapping[int, int]) -> dict[int, set[int]]:
    """What is in each loop, itself included? An outer loop comes before its inner ones.

    Of two loops on one cycle, that one is the outer to which the other's `next` leads, or else which comes first.
    """
    order, everything = _sorted(onward), set(range(len(nodes)))
    if len(order) < len(nodes):
        cycle = _cycle(nodes, onward, everything - set(order))
        raise HintError(f"no loop's body is taken in the cycle {cycle}; put a loop node with `most` in it")
    follow = [[*ways, bodies[i]] if i in bodies else ways for i, ways in enumerate(onward)]
    precede: list[list[int]] = [[] for _ in nodes]
    for i, ways in enumerate(follow):
        for to in ways:
            precede[to].append(i)
    if lost := everything - _reach(follow, 0, everything):
        raise HintError(f"node {nodes[min(lost)].id!r}: no way leads to it from the start; name it in a `next`")
    leads = _below(order, onward)
    # Of those that no `next` leads from x to: which loops does x hide, as all ways there pass it?
    hides = {x: everything - _reach(follow, 0, everything - {x}) - leads[x] - {x} for x in bodies}
    outer = {x: leads[x] | {y for y in bodies if x in hides[y]} for x in bodies}
    todo = [i for i in reversed(order) if i in bodies]
    inside: dict[int, set[int]] = {}
    while todo:
        loop = next((x for x in todo if outer[x].isdisjoint(todo)), todo[0])
        inside[loop] = _reach(follow, loop, everything) & _reach(precede, loop, everything)
        if bodies[loop] not in inside[loop] - {loop}:
            name = nodes[loop].id
            raise HintError(f"node {name!r}: its body never comes back to the loop; end the body with next [{name!r}]")
        todo.remove(loop)
        everything.remove(loop)
    return inside


def _sorted(onward: Sequence[Iterable[int]]) -> list[int]:
    """In what order does every node come before those that follow it? Leaves out those on and behind a cycle."""
    entries = [0] * len(onward)
    for ways in onward:
        for to in ways:
            entries[to] += 1
    order = [i for i, count in enumerate(entries) if not count]
    for i in order:  # grows
        for to in onward[i]:
            entries[to] -= 1
            if not entries[to]:
                order.append(to)
    return order


def _cycle(nodes: Sequence[Node], onward: Sequence[Iterable[int]], left: set[int]) -> str:
    before = {to: i for i in sorted(left) for to in onward[i]}
    path = [min(left)]
    while path[-1] not in path[:-1]:
        path.append(before[path[-1]])
    names = [nodes[i].id for i in reversed(path[path.index(path[-1]) :])]
    return " -> ".join(names if len(names) <= 9 else [*names[:7], "...", names[-1]])


def _below(order: Sequence[int], onward: Sequence[Iterable[int]]) -> list[set[int]]:
    below: list[set[int]] = [set() for _ in onward]
    for i in reversed(order):
        below[i].update(onward[i], *(below[to] for to in onward[i]))
    return below


def _bits(nodes: Iterable[int]) -> int:
    """A set of nodes as bits: a structure is kept for long."""
    return sum(1 << i for i in nodes)


def _reach(follow: Sequence[Iterable[int]], start: int, free: set[int]) -> set[int]:
    """What is reached from `start`, itself included, by way of `free` nodes?"""
    seen = free & {start}
    todo = list(seen)
    while todo:
        new = free.intersection(follow[todo.pop()]) - seen
        seen |= new
        todo.extend(new)
    return seen


def more_rounds(rounds: float, passed: float, visits: int) -> float:
    """How many rounds come after this one? `passed`: how often all of them pass the node."""
    return max(0.0, rounds - math.ceil(visits * rounds / passed - 1e-9))
