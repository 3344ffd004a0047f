"""Tracing a program leaves what is around it alone, is soon over, and says unknown where it cannot tell."""

import inspect
import itertools
import json
import linecache
import random
import threading
import time
from collections import defaultdict, deque
from io import StringIO
from typing import Any, ClassVar
from unittest.mock import patch

import pytest

from astraea_sglang.frontend import sgl, trace


class Thing:
    """Notes what is asked of it."""

    asked: ClassVar[list[str]] = []
    items: ClassVar[list[int]] = []
    inner: Any = None

    @property
    def asking(self) -> str:
        return self.ask("property")

    def ask(self, what: str) -> str:
        self.asked.append(what)
        return what

    def __enter__(self) -> None:
        self.ask("with")

    def __exit__(self, *_: Any) -> None:
        pass

    def __bool__(self) -> bool:
        return bool(self.ask("bool"))

    def __eq__(self, other: object) -> bool:
        return bool(self.ask("eq"))

    def __hash__(self) -> int:
        return len(self.ask("hash"))

    def __str__(self) -> str:
        return self.ask("str")

    def __iter__(self) -> Any:
        return iter(self.ask("iter"))

    def __getitem__(self, key: Any) -> str:
        return self.ask("getitem")

    def __add__(self, other: Any) -> str:
        return self.ask("add")

    def __neg__(self) -> str:
        return self.ask("neg")

    def __len__(self) -> int:
        return len(self.ask("len"))


class Fault(Exception):
    def __init__(self) -> None:
        THING.ask("error")


def kept(s: Any) -> None:
    s += sgl.gen("k")


THING, FAULT = Thing(), ValueError("kept")
Thing.inner = Thing()
STATE: dict[str, list[str]] = {"log": []}
LOG: list[str] = []
NUMBERS = {1, 2, 3}
MISSING: Any = defaultdict(list)
FILE = StringIO()
QUEUE = deque([1, 2, 3])
BYTES = bytearray()
COUNT = itertools.count()
GENERATOR = (i for i in range(5))
NUMBER = itertools.count()
PAIRS = [(1, THING)]


def world() -> Any:
    return (
        STATE, LOG, NUMBERS, dict(MISSING), FILE.getvalue(), list(QUEUE), bytes(BYTES), repr(COUNT), Thing.asked,
        Thing.items, FAULT.__traceback__, inspect.getgeneratorstate(GENERATOR), vars(Thing.inner),
    )  # fmt: skip


def program(text: str, **names: Any) -> Any:
    """The program with this body, and a generation after it. Its source is where inspect looks for it."""
    body = "".join(f"    {line}\n" for line in [*text.split("\n"), "s += sgl.gen('a', max_tokens=1)"])
    file = f"/around/program{next(NUMBER)}.py"
    source = f"def body(s):\n{body}"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace = {**globals(), **names}
    exec(compile(source, file, "exec"), namespace)
    return sgl.function(namespace["body"])


@pytest.mark.parametrize(
    "text",
    [
        "STATE['log'].append('x')",
        "STATE['log'] += ['x']",
        "STATE['k'] = 1",
        "del STATE['log']",
        "STATE.setdefault('k', [])",
        "l = LOG; l += ['x']",
        "l = [LOG]; l[0].append('x')",
        "l = [LOG]; l[0] += 'x'",
        "l = [*[LOG]][0:1].copy()[0]; l.extend('x')",
        "def add(l=LOG): l.append(1)\nadd()",
        "[l.append(1) for l in [LOG]]",
        "LOG[:] = ['x']",
        "LOG.__iadd__(['x'])",
        "list.append(LOG, 'x')",
        "list(map(LOG.append, 'x'))",
        "THING.items.append(1)",
        "THING.inner.count = 1",
        "THING.inner.count += 1",
        "setattr(THING.inner, 'count', 1)",
        "MISSING['k']",
        "NUMBERS.difference_update({1})",
        "n = NUMBERS; n -= {1}",
        "json.dump({'a': 1}, FILE)",
        "print('x', file=FILE)",
        "FILE.write('x')",
        "QUEUE.rotate(1)",
        "BYTES.extend(b'x')",
        "s += str(next(COUNT))",
        "for x in GENERATOR: s += sgl.gen('b')",
        "s += ''.join(str(i) for i in GENERATOR)",
        "a, *b = GENERATOR",
        "l = [*GENERATOR]",
        "dict(zip(GENERATOR, 'ab'))",
        "3 in GENERATOR",
        "s += sgl.gen('b', choices=GENERATOR)",
        "s += THING.asking",
        "s += str(THING)",
        "s += f'{THING}'",
        "s += '%s' % THING",
        "s += '{}'.format(THING)",
        "s += '{}'.format([THING])",
        "s += THING",
        "s += THING + 'x'",
        "s += -THING",
        "with THING: pass",
        "if THING: pass",
        "while THING: break",
        "assert THING",
        "x = not THING",
        "x = THING and 1",
        "x = 1 if THING else 2",
        "l = [1 for i in 'ab' if THING]",
        "THING == 1",
        "1 < 2 == THING",
        "'x' == THING",
        "[THING] == [1]",
        "1 in [THING]",
        "[THING].index(1)",
        "{THING: 1}",
        "{THING}",
        "{THING: 1 for i in 'a'}",
        "d = {}; d[THING] = 1",
        "THING['x']",
        "'abc'[THING]",
        "for x in THING: pass",
        "for a, b in [THING]: pass",
        "a, b = THING",
        "a, (b, c) = 1, THING",
        "for a, (b, c) in [(1, GENERATOR)]: pass",
        "for a, (b, c) in PAIRS: pass",
        "len(THING)",
        "sorted([THING, THING])",
        "dict([(THING, 1)])",
        "set([THING])",
        "{1: 2} | {2: THING}",
        "l = [3, 1]; l.sort(key=THING.ask)",
        "l = [3, 1]; l.sort(key=lambda x: THING.ask(x))",
        "sorted('ab', key=THING.ask)",
        "json.dumps({'o': THING}, default=THING.ask)",
        "raise Fault",
        "raise Fault()",
        "raise FAULT",
        "match THING:\n    case 1: pass",
        "@THING.ask\ndef f(): pass",
        "def f(x: THING.asking): pass",
        "class C(Thing): THING.ask('class')",
        "forks = s.fork(2); forks += THING.ask",
        "import antigravity",
    ],
)
def test_what_is_around_a_program_is_the_same_after_tracing_it(text):
    before = json.dumps(world(), default=str)
    known = sgl.structure_of(program(text))
    assert json.dumps(world(), default=str) == before
    assert (known.structure is None) is (known.why is not None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("STATE['log'].append('x')", "line 2 changes what is kept outside the program"),
        ("MISSING['k']", "line 2 uses a defaultdict that it did not make"),
        ("s += THING.asking", "line 2 takes asking from a Thing that it did not make"),
        ("with THING: pass", "line 2 enters a Thing, which is not traced"),
        ("for x in GENERATOR: pass", "line 2 goes through a generator that it did not make"),
        ("THING.inner.count = 1", "line 2 takes inner from a Thing that it did not make"),
        ("x = 2 ** 9999 ** 9", "line 2 makes a very large number"),
        ("x = 'ab' * 10 ** 9", "line 2 makes something longer than 1000000"),
        ("def f(n): f(n + 1)\nf(0)", "line 2 makes 50 calls within each other"),
        (
            "found = []; s += sgl.tool('t', found.append, 1)\nfor x in found: pass",
            "line 3 looks into a list that a tool",
        ),
        ("s += sgl.tool('t', lambda: LOG.clear())\nif LOG: s += 'x'", "line 3 looks into a list that"),
    ],
)
def test_what_cannot_be_done_without_touching_it_is_unknown(text, reason):
    assert str(sgl.structure_of(program(text)).why).startswith(reason)


@pytest.mark.parametrize(
    "text",
    [
        "l = []; l.append(THING); l += ['x']; l.pop(); l[0] = 1; l.sort(key=None)",
        "for i, (name) in enumerate(sorted({'b': 1, 'a': 2}.items())): s += str(name)",
        "words = [w.upper() for w in 'a b'.split() if w]; words.pop(); s += ', '.join(words)",
        "d = dict(a=1); d['b'] = d.get('a', 0) + 1; s += f'{d}'",
        "def pairs():\n    for a in 'ab': yield a\ns += ''.join(pairs())",
        "s += ''.join(x for x in LOG)",
        "with s.user(): s += 'x'",
        "for i, (a, b) in enumerate(zip('xy', [1, 2])): s += a\n(c, d), e = (1, 2), 3",
        "try:\n    {}['x']\nexcept KeyError: s += 'x'",
        "import random\nrandom.seed(1); s += str(random.random())",
    ],
)
def test_what_a_program_makes_itself_it_may_change(text):
    known = sgl.structure_of(program(text))
    assert known.structure is not None and len(known.structure.nodes) == 1, known.why


@pytest.mark.parametrize(
    "text",
    [
        "s += sgl.gen('q')\ntry:\n    for w in s['q']: s += sgl.gen('b')\nexcept: s += sgl.gen('c')",
        "s += sgl.gen('q')\ntry:\n    for w in s['q']: s += sgl.gen('b')\nexcept BaseException: pass",
        "s += sgl.gen('q')\nfor i in 'ab':\n    try:\n        for w in s['q']: pass\n    finally: break",
    ],
    ids=["bare", "base", "finally"],
)
def test_a_program_that_takes_every_error_does_not_take_the_tracers(text):
    assert str(sgl.structure_of(program(text)).why).endswith("goes through a value, as often as that says")


def test_a_fork_that_outlives_its_round_is_found_whatever_the_program_returns():
    def body(s):
        forks = s.fork(0)
        for i in range(2):
            if i == 0:
                forks = s.fork(2)
            try:
                forks += sgl.gen("a")
            finally:
                continue  # noqa: B012  # that is what it is about

    assert "makes forks that outlive that round" in str(sgl.structure_of(sgl.function(body)).why)


def test_a_method_that_takes_the_state_is_followed_and_others_do_not_run():
    class Asker:
        def ask(self, s, word):
            s += self.note(word) + sgl.gen("q")

        def note(self, word):
            LOG.append(word)
            return word

    def body(s):
        asker.ask(s, "x")
        asker.kept(s)

    asker: Any = Asker()
    asker.kept = kept
    known = sgl.structure_of(sgl.function(body)).structure
    assert known is not None and [node.id for node in known.nodes] == ["q", "k"] and LOG == []


def test_what_is_not_a_text_may_answer_differently_each_time():
    def body(s, thing):
        if thing.random() < 0.5:
            s += sgl.gen("a")
        if thing.random() < 0.5:
            s += sgl.gen("b")
        s += sgl.gen("c")

    known = sgl.structure_of(sgl.function(body), thing=random.Random(0)).structure
    assert known is not None
    nodes = {node.id: set(node.next) for node in known.nodes}
    assert nodes["a"] == {"b", "c"} and nodes[known.nodes[0].id] == {"a", "b", "c"}


def test_a_text_answers_the_same_each_time():
    def body(s, question="?"):
        if question.strip().lower().startswith("x"):
            s += sgl.gen("a")
        if question.strip().lower().startswith("x"):
            s += sgl.gen("b")
        s += sgl.gen("c")

    known = sgl.structure_of(sgl.function(body)).structure
    assert known is not None and {node.id: node.next for node in known.nodes}["a"] == ("b",)


def test_the_defaults_of_parameters_are_known():
    def body(s, q, rounds=3, *, words=("x", "y")):
        for _ in range(rounds):
            s += sgl.gen("a")
        for word in words:
            s += word + sgl.gen("b")

    known = sgl.structure_of(sgl.function(body), q="").structure
    assert known is not None and [node.most for node in known.nodes if node.kind == "loop"] == [3, 2]


@pytest.mark.parametrize("items", [list(range(300)), [list(range(30)) for _ in range(30)]], ids=["numbers", "lists"])
def test_a_long_trace_is_given_up_before_it_takes_a_second_of_cpu(items):
    def body(s, items):
        for item in items:
            if item == -1:
                s += sgl.gen("z")
            for j in range(40):
                if j == 41:
                    s += sgl.gen("y")
        s += sgl.gen("a")

    began = time.process_time()
    assert sgl.structure_of(sgl.function(body), items=items).why == "there are too many ways through it"
    assert time.process_time() - began < 1


def test_a_text_that_doubles_is_not_followed_for_ever():
    def body(s):
        s += sgl.gen("q")
        text = s["q"]
        for _ in range(100):
            text = text + text
        if text == "x":
            s += sgl.gen("a")

    assert sgl.structure_of(sgl.function(body)).structure is not None


def test_a_program_sends_no_structure_while_another_thread_traces_one():
    began = time.monotonic()
    with trace._lock:
        assert sgl.structure_of(program("x = 1")).why == "another program is being traced in another thread"
    assert time.monotonic() - began < 5
    assert sgl.structure_of(program("x = 1")).structure is not None


def test_a_trace_within_a_trace_is_given_up():
    inner: list[Any] = []
    with patch.object(trace, "_explore", lambda *_: inner.append(sgl.structure_of(program("x = 3")))):
        thread = threading.Thread(target=sgl.structure_of, args=[program("x = 2")], daemon=True)
        thread.start()
        thread.join(10)
    assert [known.why for known in inner] == ["it is asked for while another program is traced"]
