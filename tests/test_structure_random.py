"""Any structure, any run of it, anything that arrives: what always holds of `structure.py`."""

import json
import math
import random
from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from astraea_sglang.errors import HintError
from astraea_sglang.structure import digest, parse
from tests.test_structure import SEARCHER

quick = settings(max_examples=40, deadline=None)


# Random programs: a tree, lowered to nodes, together with a run of it that takes random ways.

items = st.recursive(
    st.tuples(st.just("segment"), st.none() | st.integers(0, 900), st.none() | st.integers(0, 900))
    | st.tuples(st.just("tool"), st.sampled_from("pqr"))
    | st.tuples(st.sampled_from(["break", "continue"]), st.integers(0, 2)),
    lambda inner: (
        st.tuples(st.sampled_from(["branch", "fork"]), st.lists(st.lists(inner, max_size=3), min_size=2, max_size=3))
        | st.tuples(
            st.sampled_from(["while", "until"]),
            st.lists(inner, max_size=3),
            st.integers(1, 4),
            st.none() | st.floats(0, 4),
        )
    ),
    max_leaves=10,
)
programs = st.lists(items, max_size=5)


class Leave(Exception):
    """A break or continue on its way to its loop."""


class Lowered:
    """The nodes of a program; run() gives the ids of segments and tools in the order of one run."""

    def __init__(self, program):
        self.nodes, self.loops, self.forks = [], [], 0
        end = self.add("segment")
        self.nodes[0]["next"] = []
        first = self.add("segment")
        entry, body = self.sequence(program, end)
        self.nodes[1]["next"] = [entry]
        self.nodes.insert(0, self.nodes.pop(1))
        self.body, self.first, self.end = body, first, end

    def add(self, kind, *then, **more):
        self.nodes.append({"id": f"n{len(self.nodes)}", "kind": kind, "next": list(then), **more})
        return self.nodes[-1]["id"]

    def run(self, seed):
        self.random, self.trace = random.Random(seed), [self.first]
        self.body()
        return [*self.trace, self.end]

    def sequence(self, program, then):
        runs = []
        for item in reversed(program):
            then, run = self.item(item, then)
            runs.insert(0, run)
        return then, lambda: [run() for run in runs]

    def item(self, item, then):
        kind, *more = item
        if kind == "segment":
            limits = {"max_tokens": more[0], "expected_tokens": more[1]}
            return self.leaf(self.add("segment", then, **limits))
        if kind == "tool":
            return self.leaf(self.add("tool", then, tool=more[0], expected_s=1))
        if kind in ("break", "continue"):
            return self.leave(kind, more[0], then)
        if kind == "branch":
            return self.branch(more[0], then)
        if kind == "fork":
            return self.fork(more[0], then)
        body, most, expected = more
        return self.loop(kind, body, most, expected, then)

    def leaf(self, name):
        return name, lambda: self.trace.append(name)

    def leave(self, kind, depth, then):
        if depth >= len(self.loops):
            return self.leaf(self.add("segment", then))
        loop_name, after = self.loops[-1 - depth]
        target = after if kind == "break" else loop_name
        name = self.add("segment", *dict.fromkeys([then, target]))

        def run() -> None:
            self.trace.append(name)
            if self.random.random() < 0.3:
                raise Leave(kind, loop_name)

        return name, run

    def branch(self, branches, then):
        ways = [self.sequence(branch, then) for branch in branches]
        name = self.add("segment", *dict.fromkeys(entry for entry, _ in ways))

        def run():
            self.trace.append(name)
            self.random.choice(ways)[1]()

        return name, run

    def fork(self, branches, then):
        self.forks += 1
        outside, self.loops = self.loops, []
        meet = self.add("join", then)
        ways = [self.sequence([("segment", None, None), *branch], meet) for branch in branches]
        self.loops = outside
        return self.add("fork", *(entry for entry, _ in ways)), lambda: [run() for _, run in ways]

    def loop(self, kind, body, most, expected, then):
        name = self.add("loop", then, most=most, expected=expected)
        node = self.nodes[-1]
        self.loops.append((name, then))
        node["body"], run_body = self.sequence([("segment", None, None), *body], name)
        self.loops.pop()

        def run():
            for _ in range(self.random.randint(kind == "until", most)):
                try:
                    run_body()
                except Leave as leave:
                    how, whose = leave.args
                    if whose != name:
                        raise
                    if how == "break":
                        return

        return (node["body"] if kind == "until" else name), run


def numbers(futures):
    return [value for value in futures if isinstance(value, int | float)]


def sane(futures):
    return (
        all(0 <= value < math.inf for value in numbers(futures))
        and futures.segments <= futures.most_segments
        and futures.expected_tokens <= futures.most_tokens
        and (futures.width > 0) == (futures.most_segments > 0)
    )


@quick
@given(programs, st.integers(1, 12))
def test_futures_are_finite_and_no_expected_sum_exceeds_its_bound(program, visits):
    lowered = parse({"nodes": Lowered(program).nodes})
    assert sane(lowered.start())
    assert all(sane(lowered.after(node.id, visits)) for node in lowered.nodes)


@quick
@given(programs)
def test_a_structure_survives_the_way(program):
    lowered = parse({"nodes": Lowered(program).nodes})
    again = parse(json.loads(json.dumps(lowered.payload())))
    assert again == lowered and again.clipped == () and digest(again) == digest(lowered)
    assert again.start() == lowered.start()


@quick
@given(programs, st.integers(1, 12))
def test_less_remains_with_every_visit(program, visits):
    lowered = parse({"nodes": Lowered(program).nodes})
    for node in lowered.nodes:
        now, later = lowered.after(node.id, visits), lowered.after(node.id, visits + 1)
        assert all(a >= b - 1e-6 for a, b in zip(numbers(now), numbers(later), strict=True))


@quick
@given(st.lists(st.sampled_from([("segment", None, None), ("segment", 50, 9), ("tool", "p")]), max_size=9), programs)
def test_less_remains_with_every_step_along_a_chain(chain, program):
    lowered = Lowered([*chain, ("while", program, 3, None)])
    remain = [parse({"nodes": lowered.nodes}).after(name) for name in [lowered.first, *lowered.run(0)[1 : len(chain)]]]
    for now, later in pairwise(remain):
        assert all(a >= b - 1e-6 for a, b in zip(numbers(now), numbers(later), strict=True))


@quick
@given(programs, st.integers(0, 99))
def test_no_run_exceeds_the_bounds(program, seed):
    lowered = Lowered(program)
    agent, run = parse({"nodes": lowered.nodes}), lowered.run(seed)
    kinds = {node.id: node.kind for node in agent.nodes}
    tools = {node.id: node.tool for node in agent.nodes}
    assert sum(kinds[name] == "segment" for name in run) <= agent.start().most_segments + 1e-6
    if lowered.forks:
        return  # what runs beside a node is not after it
    visits = Counter()
    for place, name in enumerate(run):
        visits[name] += 1
        futures, rest = agent.after(name, visits[name]), run[place + 1 :]
        assert sum(kinds[other] == "segment" for other in rest) <= futures.most_segments + 1e-6
        assert {tools[other] for other in rest if kinds[other] == "tool"} <= set(futures.tools)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=3,
)
names = st.sampled_from([node["id"] for node in SEARCHER["nodes"]])
keys = st.sampled_from(["id", "kind", "next", "body", "most", "expected", "max_tokens", "new_tokens", "tool", "x"])
changes = st.lists(
    st.tuples(st.integers(0, 7), keys, names | st.lists(names, max_size=3) | st.integers(-1, 9) | json_values),
    max_size=4,
)


def parsed(payload):
    try:
        return parse(payload)
    except HintError as error:
        assert "\n" not in str(error)
        return None


@quick
@given(json_values | st.fixed_dictionaries({"nodes": st.lists(st.dictionaries(keys, json_values), max_size=4)}))
def test_whatever_arrives_is_a_structure_or_a_hint_error(payload):
    parsed(payload)


@quick
@given(changes)
def test_a_spoiled_structure_is_a_structure_or_a_hint_error(changed):
    nodes = [dict(node) for node in SEARCHER["nodes"]]
    for place, key, value in changed:
        nodes[place][key] = value
    if agent := parsed({"nodes": nodes}):
        assert sane(agent.start()) and all(sane(agent.after(node.id, 2)) for node in agent.nodes)


graphs = st.lists(
    st.tuples(st.sampled_from(["segment", "loop", "loop", "fork", "join"]), st.lists(st.integers(0, 6), max_size=3)),
    min_size=2,
    max_size=7,
)


@quick
@given(graphs)
def test_any_graph_that_parses_has_sane_futures(graph):
    nodes = [
        {
            "id": str(i),
            "kind": kind,
            "next": [str(to) for to in ways[1:]],
            "body": str(ways[0]) if ways else "0",
            "most": 2,
        }
        for i, (kind, ways) in enumerate(graph)
    ]
    if agent := parsed({"nodes": nodes}):
        assert sane(agent.start()) and all(sane(agent.after(node.id, 2)) for node in agent.nodes)
