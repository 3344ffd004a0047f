"""Which nodes does a program pass, in what order? One timeline per state, and what all timelines of all runs show."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from astraea_sglang.frontend.run_place import Lines, Path, Place
from astraea_sglang.frontend.trace_symbol import Untraceable

# A token is a place, or a way in, on or out of one. The kinds besides those of places: start, end, fork, branch (number
# `nth`), own (what the forking state does besides), join, enter (a loop), again (its next round) and done (with it).
Token = Place
START, END = Token("start"), Token("end")


@dataclass(slots=True)
class About:
    """What is known of a token?"""

    name: str = ""
    tool: str = ""
    limit: int | None = None  # tokens
    expects: float | None = None  # seconds


@dataclass(slots=True)
class Ways:
    """What do all runs show? Which token follows which, and how often a loop goes round at most."""

    follow: dict[Token, dict[Token, None]] = field(default_factory=dict)
    about: dict[Token, About] = field(default_factory=dict)
    rounds: dict[Token, int] = field(default_factory=dict)
    forks: dict[Token, int] = field(default_factory=dict)
    joins: dict[Token, Token] = field(default_factory=dict)  # of a join: its fork

    def link(self, before: Token, after: Token) -> None:
        """A program was seen to go from one to the other."""
        self.follow.setdefault(before, {})[after] = None
        self.follow.setdefault(after, {})

    def known(self, token: Token, about: About) -> None:
        """One visit says this of the token; what two visits say differently is their maximum, or unknown."""
        old = self.about.setdefault(token, about)
        old.limit = None if old.limit is None or about.limit is None else max(old.limit, about.limit)
        old.expects = old.expects if old.expects == about.expects else None


class Loop:
    """A loop that the program is in. `round` counts from 0, `visits` how often it was asked for another."""

    def __init__(self, lines: Lines, left: object) -> None:
        self.lines, self.left = lines, left  # what makes its rounds differ from those of another
        self.round = self.visits = -1

    def turn(self) -> None:
        """Another round begins."""
        self.round += 1
        self.visits += 1


@dataclass(slots=True)
class _Entered:
    loop: Loop
    round: int
    visits: int
    count: int = 1  # rounds with nodes in them


class Timeline:
    """Where is one state? Loops appear once a node is seen in them, and only their rounds that have nodes."""

    def __init__(self, ways: Ways, path: Path, last: Token, around: Sequence[Loop]) -> None:
        self.ways, self.path, self.last = ways, path, last
        self.around = [(loop, loop.round) for loop in around]
        self.entered: list[_Entered] = []

    def come(self, loops: Sequence[Loop]) -> None:
        """The state is about to reach a node, within these loops. Raises Untraceable if it began in another round."""
        if self.around != [(loop, loop.round) for loop in loops[: len(self.around)]]:
            raise Untraceable(f"line {self.path[-1][0][0][1]} makes forks that outlive that round of the loop")
        inner = loops[len(self.around) :]
        same = 0
        while same < min(len(inner), len(self.entered)) and self._in_round(same, inner[same]):
            same += 1
        again = same < min(len(inner), len(self.entered)) and self.entered[same].loop is inner[same]
        self.leave(same + again)
        if again:
            entered, same = self.entered[same], same + 1
            self.step(self._token("again", entered.loop))
            entered.round, entered.count = entered.loop.round, entered.count + 1
        for loop in inner[same:]:
            self.step(self._token("enter", loop))
            self.entered.append(_Entered(loop, loop.round, loop.visits))
        for entered in self.entered:
            entered.visits = entered.loop.visits
            token = self._token("enter", entered.loop)
            self.ways.rounds[token] = max(self.ways.rounds.get(token, 1), entered.count)

    def leave(self, depth: int = 0) -> None:
        """The state has left all loops but the `depth` outer ones: as they ended, or by a break."""
        while len(self.entered) > depth:
            entered = self.entered.pop()
            if entered.loop.visits > entered.visits:
                self.step(self._token("done", entered.loop))

    def step(self, token: Token) -> None:
        """The state passes a token."""
        self.ways.link(self.last, token)
        self.last = token

    def end(self, token: Token = END) -> None:
        """The state reaches its end, or the join of its fork."""
        self.leave()
        self.step(token)

    def mark(self, loops: Sequence[Loop]) -> object:
        """What distinguishes this moment of the timeline from others?"""
        return self.last, tuple(
            (loops.index(entered.loop) if entered.loop in loops else -1, entered.round, entered.visits, entered.count)
            for entered in self.entered
        )

    def _in_round(self, i: int, loop: Loop) -> bool:
        return self.entered[i].loop is loop and self.entered[i].round == loop.round

    def _token(self, kind: str, loop: Loop) -> Token:
        return Token(kind, self.path, loop.lines)
