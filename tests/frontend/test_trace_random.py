"""Any small program, any run of it, with values at random: it is a way that the traced structure allows."""

import linecache
import random
from collections import Counter
from itertools import count
from threading import Lock
from typing import Any
from unittest.mock import patch

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sglang.lang.backend.base_backend import BaseBackend

from astraea_sglang.frontend import sgl, trace
from astraea_sglang.frontend.executor import ProgramExecutor

quick = settings(max_examples=40, deadline=None)

items = st.recursive(
    st.sampled_from(["gen", "select", "tool", "both", "parallel", "ask", "break", "continue", "return", "twice"]),
    lambda inner: (
        st.tuples(st.just("if"), st.lists(inner, max_size=2), st.lists(inner, max_size=2))
        | st.tuples(st.just("for"), st.integers(0, 3), st.lists(inner, min_size=1, max_size=3))
        | st.tuples(st.just("each"), st.integers(1, 3), st.lists(inner, max_size=2), st.lists(inner, max_size=2))
        | st.tuples(st.just("fork"), st.lists(inner, max_size=2), st.lists(inner, max_size=2))
    ),
    max_leaves=12,
)
programs = st.lists(items, min_size=1, max_size=4)
numbers = count()


class Source:
    """The text of a program. Leaving a loop or the function hangs on a value; no fork leaves what is around it."""

    def __init__(self, program: list[Any]) -> None:
        self.lines = ["def program(s):", "    s += 'x'"]
        self.names = 0
        self.block(program, "s", 1, loops=0, free=True)
        self.text = "\n".join(self.lines) + "\n"

    def name(self, letter: str) -> str:
        self.names += 1
        return f"{letter}{self.names}"

    def add(self, depth: int, line: str) -> None:
        self.lines.append("    " * depth + line)

    def block(self, items: Any, s: str, depth: int, *, loops: int, free: bool) -> None:
        for item in items:
            self.item(item, s, depth, loops=loops, free=free)
        self.add(depth, "pass")

    def item(self, item: Any, s: str, depth: int, *, loops: int, free: bool) -> None:
        kind, *more = [item] if isinstance(item, str) else item
        a, t = self.name("a"), self.name("t")
        call = f"sgl.tool('{t}', note, '{t}')"
        simple = {
            "gen": f"sgl.gen('{a}', max_tokens=3)",
            "select": f"sgl.gen('{a}', choices=['yes', 'no', 'perhaps'])",
            "tool": call,
            "both": f"sgl.gen('{a}') + ' ' + {call}",
            "parallel": f"sgl.parallel({call}, sgl.tool('{t}b', note, '{t}b'))",
        }
        if kind in simple:
            self.add(depth, f"{s} += {simple[kind]}")
        elif kind == "ask":
            self.add(depth, f"n = ask({s}, 2)")
        elif free if kind == "return" else loops and kind in ("break", "continue"):
            self.add(depth, f"{s} += sgl.gen('{a}')")
            self.add(depth, f"if {s}['{a}'] == 'yes': {kind}")
        elif kind == "twice":
            self.add(depth, f"{s} += sgl.gen('{a}')")
            for last in "bc":
                self.add(depth, f"if {s}['{a}'] == 'yes':")
                self.add(depth, f"    {s} += sgl.gen('{a}{last}')")
        elif kind == "if":
            self.add(depth, f"{s} += sgl.gen('{a}')")
            self.add(depth, f"if {s}['{a}'] in ('yes', 'perhaps'):")
            self.block(more[0], s, depth + 1, loops=loops, free=free)
            self.add(depth, "else:")
            self.block(more[1], s, depth + 1, loops=loops, free=free)
        elif kind == "for":
            self.add(depth, f"for {a} in range({more[0]}):")
            self.block(more[1], s, depth + 1, loops=loops + 1, free=free)
        elif kind == "each":
            self.add(depth, f"{t} = {s}.fork({more[0]})")
            self.add(depth, f"for {a} in {t}.states:")
            self.block(more[1], a, depth + 1, loops=0, free=False)
            self.block(more[2], s, depth, loops=0, free=False)
            self.add(depth, f"{t}.join()")
        elif kind == "fork":
            self.add(depth, f"{t} = {s}.fork(2)")
            for i, branch in enumerate(more):
                self.add(depth, f"{t}_{i} = {t}[{i}]")
                self.block(branch, f"{t}_{i}", depth, loops=0, free=False)
            self.add(depth, f"{t}.join()")


def ask(s: Any, rounds: int) -> int:
    for i in range(rounds):
        s += "again " + sgl.gen("asked", max_tokens=1)
        if s["asked"] != "no":
            return i
    return rounds


class RandomModel(sgl.AstraeaEndpoint):
    """In the place of a server: it says yes, no or perhaps. Notes of each state what is asked and called, in order."""

    def __init__(self, seed: int) -> None:
        BaseBackend.__init__(self)
        self.trace, self.seed, self._lock = True, seed, Lock()
        self.seen: dict[Any, list[tuple[str, Any]]] = {}

    def note(self, path: Any, kind: str, what: Any) -> None:
        with self._lock:
            self.seen.setdefault(path, []).append((kind, what))

    def generate(self, s: Any, sampling_params: Any = None) -> Any:
        self.note(s.path, "node", s.node)
        said = random.Random(f"{self.seed} {s.path} {len(self.seen[s.path])}").choice(["yes", "no", "perhaps"])
        return said, {}

    def select(self, s: Any, choices: Any, temperature: Any, choices_method: Any) -> Any:
        class Decision:
            decision, meta_info = self.generate(s)

        return Decision

    def commit_lazy_operations(self, s: Any) -> None:
        self.note(s.path, "node", s.node)

    def end_of_program(self, program: Any) -> None:
        pass


def compiled(text: str) -> Any:
    name = f"/random/program{next(numbers)}.py"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    namespace = {"sgl": sgl, "note": str, "ask": ask}
    exec(compile(text, name, "exec"), namespace)
    return namespace["program"]


class Allowed:
    """Which ways does a structure allow one state? It passes over the nodes of others, such as those of its forks."""

    def __init__(self, known: sgl.Traced) -> None:
        assert known.structure is not None
        self.nodes = {node.id: node for node in known.structure.nodes}
        self.paths = {name: place.path for place, name in known.nodes.items()}
        self.first = known.structure.nodes[0].id

    def onward(self, ids: set[str], path: Any) -> tuple[set[str], bool]:
        """Which of its nodes may come next, and may the program end before that?"""
        seen: set[str] = set()
        todo, found, ends = list(ids), set(), False
        while todo:
            node = self.nodes[todo.pop()]
            if node.id in seen:
                continue
            seen.add(node.id)
            if self.paths.get(node.id) == path:
                found.add(node.id)
                continue
            todo += [*node.next, *([node.body] if node.kind == "loop" else [])]
            ends |= not node.next
        return found, ends

    def way(self, events: list[tuple[str, Any]], path: Any) -> bool:
        """Can the structure do this, and then end?"""
        starts, over = {self.first}, False
        for kind, what in events:
            found, _ = self.onward(starts, path)
            fits = {id for id in found if what == (id if kind == "node" else self.nodes[id].tool)}
            if not fits:
                return False
            starts = {after for id in fits for after in self.nodes[id].next}
            over = any(not self.nodes[id].next for id in fits)
        return over or self.onward(starts, path)[1]


@given(programs, st.integers(0, 1000))
@quick
def test_every_run_is_a_way_that_the_structure_allows(program, seed):
    text = Source(program).text
    model = RandomModel(seed)

    def tools_seen(state: ProgramExecutor, node: Any) -> None:
        model.note(state.path, "tool", node.name)
        execute(state, node)

    execute = ProgramExecutor._execute_tools
    function: Any = sgl.function(compiled(text))
    with patch.object(trace, "MAX_STEPS", 30_000):  # to be quick
        known = sgl.structure_of(function)
    if known.structure is None:
        assert known.why in ("there are too many ways through it", "it asks the server for nothing"), (text, known.why)
    assume(known.structure)
    assert known.structure is not None
    with patch.object(ProgramExecutor, "_execute_tools", tools_seen):
        state: Any = function.run(backend=model)
        state.sync()
    assert state.error() is None

    nodes = [what for events in model.seen.values() for kind, what in events if kind == "node"]
    assert all(node is not None and known.structure.has_segment(node) for node in nodes), text
    assert len(nodes) <= known.structure.start().most_segments, text
    most = known.structure._graph.flow(known.structure._graph.root)[1]
    for node, visits in Counter(nodes).items():
        assert visits <= most[known.structure._graph.index[node]], (text, node)
    allowed = Allowed(known)
    for path, events in model.seen.items():
        assert allowed.way(events, path), (text, path, events)
