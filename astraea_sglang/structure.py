"""What can still come after a node of an agent program? A client's declared structure: parsed, validated, clipped.

The payload is an object {"nodes": [...]}; the first node is the start. Every node has

    id      1 to 128 printable characters, unique
    kind    segment, tool, loop, fork or join
    next    ids: alternatives, of which one happens; on a fork all happen in parallel. None ends the program

and by kind, all optional but a loop's body and most:

    segment   max_tokens, expected_tokens (generated), new_tokens (prompt tokens that it adds, such as a tool's answer)
    tool      tool (its name, default: the id), expected_s
    loop      body (id), most (rounds per entry, from 1), expected (usual rounds, default: half of most, rounded up)

A loop is passed on entry and after each round; its body comes back to it by a `next`. A way into a body that avoids its
loop counts as entering the loop: the round that it begins is one of `most`.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from astraea_sglang.errors import HintError
from astraea_sglang.graph import KINDS, Graph, Node, more_rounds

MAX_NODES = 256
MAX_KEPT = 16_384  # nodes of all structures that are remembered
MAX_BRANCHES = 64  # of one fork
MAX_IGNORED = 32
NAME_LENGTH = 128
MAX_TOKENS = 1_000_000  # of one segment
MAX_ROUNDS = 10_000
MAX_TOOL_S = 7 * 24 * 3600.0
MAX_SUM = 1e9  # tokens, in any of the Futures


class Futures(NamedTuple):
    """What may still come? Expected sums and, as `most_`, upper bounds. No expected sum exceeds its bound."""

    segments: float
    most_segments: float
    expected_tokens: float  # generated
    most_tokens: float  # MAX_TOKENS per segment that declares none, MAX_SUM in all
    new_tokens: float  # prompt tokens beyond what the program has computed
    tool_s: float  # of the tools that declare it
    tools: tuple[str, ...]  # sorted
    width: int  # the most segments that may run in parallel


@dataclass(frozen=True, slots=True)
class ProgramStructure:
    """An agent program as declared; equal if the nodes are. `clipped` and `ignored` name fields, as node.field."""

    nodes: tuple[Node, ...]
    clipped: tuple[str, ...] = field(default=(), compare=False)
    ignored: tuple[str, ...] = field(default=(), compare=False)
    _graph: Graph = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_graph", Graph(self.nodes))

    def payload(self) -> dict[str, Any]:
        """How does it travel? The payload that `parse` reads back as an equal structure, defaults spelled out."""
        return {"nodes": [_payload(node) for node in self.nodes]}

    def has_segment(self, node_id: str) -> bool:
        """Is a segment of this id declared?"""
        i = self._graph.index.get(node_id)
        return i is not None and self.nodes[i].kind == "segment"

    def segment(self, node_id: str) -> Node:
        """What is declared of a segment? Raises KeyError if no segment has this id."""
        node = self.nodes[self._graph.index[node_id]]
        if node.kind != "segment":
            raise KeyError(node_id)
        return node

    def start(self, unknown_tokens: float = 128.0) -> Futures:
        """What does a fresh program have before it? `unknown_tokens` as for `after`."""
        return self._futures(zip(*self._graph.flow(self._graph.root), strict=True), 0, unknown_tokens)

    def after(self, node_id: str, visits: int = 1, unknown_tokens: float = 128.0) -> Futures:
        """What may come when a program has just ended `node_id` for the `visits`-th time? Raises KeyError if unknown.

        A segment that declares no expected_tokens counts `unknown_tokens`. The node has been reached, so the branches
        that led there are no longer in doubt. Each visit uses up its share of the rounds of the loops around the node:
        an approximation where loops nest, as inner rounds are taken to be spread evenly over the outer ones.
        """
        graph, n = self._graph, self._graph.index[node_id]
        usual, most = graph.flow(graph.within[n][0] if graph.within[n] else n)
        passed = graph.rounds(n, usual, most) if n in graph.inside else (usual[n], most[n])
        later = graph.below[n]  # bits: what comes without a further round
        for loop in graph.within[n]:
            later |= graph.exits[loop]
        width = graph.width[n] if self.nodes[n].kind == "fork" else 0
        if not graph.within[n]:
            usual[n] = most[n] = 0.0
        innermost = {u: loop for loop in graph.within[n] for u in graph.inside[loop]}  # of the loops around n and u
        rounds = {loop: graph.rounds(loop, usual, most) for loop in graph.within[n]}
        more = {
            loop: [more_rounds(*pair, visits) for pair in zip(rounds[loop], passed, strict=True)] for loop in rounds
        }
        for u, loop in innermost.items():
            most[u] *= (more[loop][1] + (later >> u & 1)) / rounds[loop][1]
            usual[u] = min(most[u], usual[u] * (more[loop][0] + (later >> u & 1)) / rounds[loop][0])
        return self._futures(zip(usual, most, strict=True), width, unknown_tokens)

    def _futures(self, visits: Iterable[tuple[float, float]], width: int, unknown_tokens: float) -> Futures:
        segments = most_segments = tokens = most_tokens = new_tokens = tool_s = 0.0
        tools: set[str] = set()
        for node, own_width, (usual, most) in zip(self.nodes, self._graph.width, visits, strict=True):
            if not most:
                continue
            width = max(width, own_width)
            if node.kind == "segment":
                limit = MAX_TOKENS if node.max_tokens is None else node.max_tokens
                segments, most_segments = segments + usual, most_segments + most
                tokens += usual * min(limit, unknown_tokens if node.expected_tokens is None else node.expected_tokens)
                most_tokens += most * limit
                new_tokens += usual * node.new_tokens
            elif node.kind == "tool":
                tool_s += usual * (node.expected_s or 0.0)
                tools.add(node.tool)
        tokens, most_tokens, new_tokens = (min(total, MAX_SUM) for total in (tokens, most_tokens, new_tokens))
        return Futures(segments, most_segments, tokens, most_tokens, new_tokens, tool_s, tuple(sorted(tools)), width)


def parse(payload: object) -> ProgramStructure:
    """What does a client declare? Raises HintError naming the first malformed node."""
    listed = payload.get("nodes") if isinstance(payload, Mapping) else None
    if not isinstance(payload, Mapping) or not isinstance(listed, list | tuple):
        seen = f"an object whose nodes are {_seen(listed)}" if isinstance(payload, Mapping) else _seen(payload)
        raise HintError(f'the structure is {seen}; send {{"nodes": [{{"id": "think", "kind": "segment"}}]}}')
    if not 1 <= len(listed) <= MAX_NODES:
        raise HintError(f"the structure has {len(listed)} nodes; send 1 to {MAX_NODES}")
    readers = [_Reader(entry, f"nodes[{place}]") for place, entry in enumerate(listed)]
    nodes = tuple(reader.node() for reader in readers)
    clipped = tuple(name for reader in readers for name in reader.clipped)
    ignored = {_name(key) for key in payload if key != "nodes"}.union(*(reader.ignored() for reader in readers))
    return ProgramStructure(nodes, clipped, tuple(sorted(ignored)[:MAX_IGNORED]))


def digest(structure: ProgramStructure | Mapping[str, Any]) -> str:
    """Under what reference is a structure known? 32 hex digits, the same for every spelling of equal structures."""
    parsed = structure if isinstance(structure, ProgramStructure) else parse(structure)
    text = json.dumps(parsed.payload(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Structures:
    """The structures that clients declared, by digest: of those used last, MAX_KEPT nodes in all."""

    def __init__(self) -> None:
        self._known: dict[str, ProgramStructure] = {}
        self._nodes = 0

    def __contains__(self, ref: object) -> bool:
        return ref in self._known

    def add(self, structure: ProgramStructure, ref: str | None = None) -> str:
        """Keep a structure; `ref` is its digest, if that is known already. Returns the digest."""
        ref = ref or digest(structure)
        if ref not in self._known:
            self._nodes += len(structure.nodes)
            self._known[ref] = structure
            while self._nodes > MAX_KEPT:
                self._nodes -= len(self._known.pop(next(iter(self._known))).nodes)
        return ref

    def get(self, ref: str) -> ProgramStructure | None:
        """The structure with this digest, which is used now. None if it is not known, or no longer."""
        structure = self._known.pop(ref, None)
        if structure is not None:
            self._known[ref] = structure
        return structure


class _Reader:
    """What does one declared node say? `clipped` and `ignored` name its fields so treated."""

    def __init__(self, entry: object, place: str) -> None:
        if not isinstance(entry, Mapping):
            raise HintError(f'{place} is {_seen(entry)}; send an object such as {{"id": "a", "kind": "segment"}}')
        self.entry, self.where, self.clipped = entry, place, []
        self.id = self._text("id")
        self.where = f"node {self.id!r}"
        kind = entry.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            raise self._error("kind", kind, f"one of {', '.join(KINDS)}")
        self.kind = kind

    def ignored(self) -> set[str]:
        known = {"id", "kind", "next", *KINDS[self.kind]}
        return {f"{self.id}.{_name(key)}" for key in self.entry if key not in known}

    def node(self) -> Node:
        ways = self._ways()
        if self.kind == "segment":
            limit = self._whole("max_tokens", MAX_TOKENS)
            expected = self._number("expected_tokens", MAX_TOKENS if limit is None else limit)
            return Node(self.id, self.kind, ways, limit, expected, self._number("new_tokens", MAX_TOKENS) or 0.0)
        if self.kind == "tool":
            expected = self._number("expected_s", MAX_TOOL_S)
            return Node(self.id, self.kind, ways, tool=self._text("tool", self.id), expected_s=expected)
        if self.kind == "loop":
            most = self._whole("most", MAX_ROUNDS)
            if not most:
                raise self._error("most", most, "a whole number of 1 or more: the rounds at most")
            expected = self._number("expected", most)
            expected = float(math.ceil(most / 2)) if expected is None else expected
            return Node(self.id, self.kind, ways, body=self._text("body"), most=most, expected=expected)
        if self.kind == "fork" and not 2 <= len(ways) <= MAX_BRANCHES:
            raise HintError(f"{self.where}: the fork has {len(ways)} branches in next; send 2 to {MAX_BRANCHES}")
        return Node(self.id, self.kind, ways)

    def _ways(self) -> tuple[str, ...]:
        value = self.entry.get("next")
        value = [] if value is None else value
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            raise self._error("next", value, "a list of node ids")
        if len(set(value)) < len(value):
            raise HintError(f"{self.where}: next names an id twice; send each once")
        return tuple(value)

    def _text(self, key: str, default: str | None = None) -> str:
        value = self.entry.get(key)
        value = default if value is None else value
        if not isinstance(value, str) or not 1 <= len(value) <= NAME_LENGTH or not value.isprintable():
            raise self._error(key, value, f"1 to {NAME_LENGTH} printable characters")
        return value

    def _whole(self, key: str, most: int) -> int | None:
        if isinstance(self.entry.get(key), float):
            raise self._error(key, self.entry[key], "a whole number of 0 or more")
        number = self._number(key, most)
        return None if number is None else int(number)

    def _number(self, key: str, most: float) -> float | None:
        value = self.entry.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self._error(key, value, "a number of 0 or more")
        if value > most:
            self.clipped.append(f"{self.id}.{key}")
        return min(value, most) + 0.0  # a float, and no -0.0

    def _error(self, key: str, value: object, wanted: str) -> HintError:
        return HintError(f"{self.where}: {key} is {_seen(value)}; send {wanted}")


def _payload(node: Node) -> dict[str, Any]:
    told = {key: getattr(node, key) for key in KINDS[node.kind] if getattr(node, key) is not None}
    return {"id": node.id, "kind": node.kind, **told, "next": list(node.next)}


def _name(key: object) -> str:
    return key[:NAME_LENGTH] if isinstance(key, str) else f"a {type(key).__name__}"


def _seen(value: object) -> str:
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 10**15):
        return str(value)
    names = {dict: "an object", list: "a list", int: "a huge number", type(None): "missing"}
    return names.get(type(value), f"a {type(value).__name__}")
