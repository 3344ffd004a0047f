"""Which structure do the ways of a program form? Its nodes as `astraea_sglang.structure.parse` reads them."""

from collections.abc import Iterable
from typing import Any

from astraea_sglang.frontend.run_place import Place
from astraea_sglang.frontend.trace_path import END, START, Token, Ways
from astraea_sglang.frontend.trace_symbol import Untraceable

SEGMENTS = {"SglGen": "gen", "SglSelect": "select", "SglCommitLazy": "prefix"}
STEPS = {**SEGMENTS, "SglTool": "tool", "SglParallel": "tool"}
LOOP_PARTS = ("enter", "again", "done")
LONGEST = 100  # characters of a name, before what makes it unique


def nodes_of(ways: Ways) -> tuple[list[dict[str, Any]], dict[Place, str]]:
    """The nodes, and the name of each place. Raises Untraceable if none asks the server for something."""
    if not any(token.kind in SEGMENTS for token in ways.follow):
        raise Untraceable("it asks the server for nothing")
    return _Nodes(ways).listed()


class _Nodes:
    """A token is a node, or is passed over; where several ways begin and one id is wanted, a join stands for them."""

    def __init__(self, ways: Ways) -> None:
        self.ways = ways
        # A loop is one if rounds follow each other in it; a fork, if two of its branches do something.
        self.loops = {token._replace(kind="enter") for token in ways.follow if token.kind == "again"}
        self.acting = {token: self._acting(token) for token in ways.forks}
        self.ids: dict[Token, str] = {}
        self.used: set[str] = set()
        self.todo: list[Token] = []
        self.nodes: list[dict[str, Any]] = []

    def listed(self) -> tuple[list[dict[str, Any]], dict[Place, str]]:
        self._entry(START, self._after(START), "start")
        while self.todo:
            self._write(self.todo.pop(0))
        return self.nodes, {token: name for token, name in self.ids.items() if token.kind in STEPS}

    def _write(self, token: Token) -> None:
        about = self.ways.about.get(token)
        node: dict[str, Any] = {"id": self.ids[token]}
        self.nodes.append(node)
        if token.kind in SEGMENTS and about:
            node["kind"] = "segment"
            if about.limit is not None:
                node["max_tokens"] = about.limit
        elif token.kind in STEPS and about:
            node.update(kind="tool", tool=about.tool)
            if about.expects is not None:
                node["expected_s"] = about.expects
        elif token.kind == "enter":
            again, done = token._replace(kind="again"), token._replace(kind="done")
            body = self._heads([*self.ways.follow[token], *self.ways.follow[again]])
            node.update(kind="loop", most=self.ways.rounds[token], body=self._entry(again, body, "round", token))
            node["next"] = self._named(self._after(done))
            return
        elif token.kind == "fork":
            starts = [self._after(branch) for branch in self.acting[token]]
            shared = [head for i, heads in enumerate(starts) for other in starts[:i] for head in heads if head in other]
            joins = [join for join, fork in self.ways.joins.items() if fork == token]
            node["kind"] = "fork"
            node["next"] = [
                self._entry(branch, heads, "branch", *shared, *joins)
                for branch, heads in zip(self.acting[token], starts, strict=True)
            ]
            return
        else:
            node["kind"] = "join"
        node["next"] = self._named(self._after(token))

    def _entry(self, token: Token, heads: list[Token], word: str, *barred: Token) -> str:
        """The id by which a way is entered that goes on with one of the heads."""
        if len(heads) == 1 and heads[0] not in (END, *barred):
            return self._id(heads[0])
        name = self._unique(f"{word} {token.lines[0][1]}" if token.lines else word)
        self.nodes.append({"id": name, "kind": "join", "next": self._named(heads)})
        return name

    def _named(self, heads: list[Token]) -> list[str]:
        return [] if heads == [END] else [self._id(head) for head in heads]

    def _id(self, token: Token) -> str:
        if token not in self.ids:
            about = self.ways.about.get(token)
            word = {"enter": "loop", **STEPS}.get(token.kind, token.kind)
            name = about.name if about else ""
            if not name or not name.isprintable():
                name = f"{word} {token.lines[0][1]}" if token.lines else word
            self.ids[token] = self._unique(name[:LONGEST])
            self.todo.append(token)
        return self.ids[token]

    def _unique(self, name: str) -> str:
        count, wanted = 1, name
        while wanted in self.used:
            count += 1
            wanted = f"{name}.{count}"
        self.used.add(wanted)
        return wanted

    def _after(self, token: Token) -> list[Token]:
        return self._heads(self.ways.follow.get(token, ()))

    def _heads(self, tokens: Iterable[Token]) -> list[Token]:
        """Which nodes, or the end, come first on the ways that begin with these tokens?"""
        heads: dict[Token, None] = {}
        seen: set[Token] = set()
        todo = list(tokens)[::-1]
        while todo:
            token = todo.pop()
            if token in seen:
                continue
            seen.add(token)
            enter = token._replace(kind="enter")
            if token.kind in LOOP_PARTS and enter in self.loops:
                heads[enter] = None
            elif token.kind in STEPS or token == END or self._forks(token):
                heads[token] = None
            else:
                # Of a fork that is none, the one branch that does something.
                todo.extend([*(self.acting.get(token) or self.ways.follow[token])][::-1])
        return list(heads)

    def _forks(self, token: Token) -> bool:
        return len(self.acting.get(self.ways.joins.get(token, token), ())) > 1

    def _acting(self, fork: Token) -> list[Token]:
        """In which branches is there anything before the join?"""
        return [branch for branch in self.ways.follow[fork] if self._acts(branch, fork)]

    def _acts(self, branch: Token, fork: Token) -> bool:
        seen = {join for join, of in self.ways.joins.items() if of == fork}
        todo = [branch]
        while todo:
            token = todo.pop()
            if token.kind in STEPS:
                return True
            if token not in seen:
                seen.add(token)
                todo.extend(self.ways.follow[token])
        return False
