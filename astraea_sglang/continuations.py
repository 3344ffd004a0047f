"""Whose next segment is a request that names no program? That program's whose finished segment its prompt continues.

A client that says nothing of its agent still sends the agent's path again: the old prompt, what was generated, the
tool's answer. So a prompt belongs to a finished segment if it begins with that segment's whole prompt, agrees with the
beginning of its output, and goes on. Of several, the one that agrees longest: what two programs share does not tell
them apart, so if they agree equally far the request is nobody's.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from astraea_sglang.beginnings import BLOCK, WIDTH, Prompt, packed

ENOUGH = 4  # tokens of an output with which a prompt has to go on: a template may alter what follows
KEPT = 256  # tokens of an output that are compared
BRANCHES = 32  # finished segments remembered of one program


@dataclass(slots=True, eq=False)
class _Path:
    """A finished segment: a digest of its prompt's whole blocks, and the tokens after them."""

    program: str
    blocks: int
    digest: bytes
    prompt: int  # bytes of the prompt after those blocks
    tail: bytes  # those, and the first KEPT tokens of the output
    least: int  # bytes of the tail with which a prompt that continues it agrees at least

    def begins(self, prompt: Prompt) -> bool:
        """Does a prompt begin with the path's whole prompt?"""
        begun = self.blocks * BLOCK * WIDTH
        rest = prompt.packed[begun : begun + self.prompt]
        return rest == self.tail[: self.prompt] and prompt.digest(self.blocks) == self.digest


class Continuations:
    """Finished segments, at most `most`, and whose path a prompt continues. Equal calls give equal answers.

    Once a program has gone on after a segment, or sent its prompt again, that segment only counts where no other agrees
    as far, and is the first to be forgotten. So a request that is sent twice, or whose client has gone back in its
    history, still finds its program, while a second program that does as the first did before is not taken for it.
    Branches stand side by side.
    """

    def __init__(self, most: int = 4096) -> None:
        self.counts: Counter[str] = Counter()
        self._most = most
        self._numbers = count()
        self._ends, self._passed = _Paths(), _Paths()
        self._programs: dict[str, dict[int, _Path]] = {}  # by number, oldest first
        self._depths: Counter[int] = Counter()  # how many paths have so many blocks

    def __len__(self) -> int:
        return len(self._ends) + len(self._passed)

    def finished(self, program: str, prompt: Prompt, output: Sequence[int], *, enough: int = ENOUGH) -> None:
        """A segment of `program` is over, `output` in token ids: nothing recognises one that is empty.

        With `enough` tokens of its output, or all of a shorter one, has a prompt to go on that continues it.

        If a template drops the beginning of what is generated, such as a thought, it may be told once more without.
        """
        if not output:
            return
        blocks = prompt.blocks
        mine = self._programs.setdefault(program, {})
        rest = prompt.packed[blocks * BLOCK * WIDTH :]
        path = _Path(
            program,
            blocks,
            prompt.digest(blocks),
            len(rest),
            rest + packed(output[:KEPT]),
            len(rest) + min(len(output), enough) * WIDTH,
        )
        for number, old in list(mine.items()):
            if (old.digest, old.prompt, old.tail) == (path.digest, path.prompt, path.tail):
                self._forget(number, old)
            elif number in self._ends and old.begins(prompt):
                self._ends.remove(number)
                self._passed.add(number, old)
        self._programs.setdefault(program, mine)  # in case its only path was this one
        number = next(self._numbers)
        mine[number] = path
        self._ends.add(number, path)
        self._depths[blocks] += 1
        if len(mine) > BRANCHES:
            oldest = next((number for number in mine if number in self._passed), next(iter(mine)))
            self._forget(oldest, mine[oldest])
        while len(self) > self._most:
            self._forget(*(self._passed.oldest() or self._ends.oldest() or (number, path)))
            self.counts["forgotten"] += 1

    def continued(self, prompt: Prompt) -> str | None:
        """Whose next segment has this prompt? None if it continues nobody's path, or several programs' alike."""
        depths = [blocks for blocks in range(prompt.blocks + 1) if blocks in self._depths]
        digests = {blocks: prompt.digest(blocks) for blocks in depths}
        agreed, programs = self._ends.longest(digests, prompt.packed)
        further, passed = self._passed.longest(digests, prompt.packed)
        if further > agreed:
            programs = passed
        self.counts["recognised" if len(programs) == 1 else "ambiguous" if programs else "unknown"] += 1
        return next(iter(programs)) if len(programs) == 1 else None

    def forget(self, program: str) -> None:
        """Nothing continues this program any more."""
        for number, path in list(self._programs.get(program, {}).items()):
            self._forget(number, path)

    def _forget(self, number: int, path: _Path) -> None:
        (self._ends if number in self._ends else self._passed).remove(number)
        mine = self._programs[path.program]
        del mine[number]
        if not mine:
            del self._programs[path.program]
        self._depths[path.blocks] -= 1
        if not self._depths[path.blocks]:
            del self._depths[path.blocks]


class _Group:
    """Paths with the same blocks, by the beginnings of their tails that must agree."""

    def __init__(self) -> None:
        self.lengths: dict[int, int] = {}  # how many paths need so many bytes
        self.tails: dict[bytes, list[_Path]] = {}  # sorted: those that agree longest with a prompt are neighbours


class _Paths:
    """Paths by number, oldest first, and by what they begin with."""

    def __init__(self) -> None:
        self._paths: dict[int, _Path] = {}
        self._groups: dict[bytes, _Group] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, number: int) -> bool:
        return number in self._paths

    def oldest(self) -> tuple[int, _Path] | None:
        return next(iter(self._paths.items()), None)

    def add(self, number: int, path: _Path) -> None:
        self._paths[number] = path
        group = self._groups.get(path.digest)
        if group is None:
            group = self._groups[path.digest] = _Group()
        group.lengths[path.least] = group.lengths.get(path.least, 0) + 1
        insort(group.tails.setdefault(path.tail[: path.least], []), path, key=_tail)

    def remove(self, number: int) -> None:
        path = self._paths.pop(number)
        group = self._groups[path.digest]
        start = path.tail[: path.least]
        group.tails[start].remove(path)
        if not group.tails[start]:
            del group.tails[start]
        group.lengths[path.least] -= 1
        if not group.lengths[path.least]:
            del group.lengths[path.least]
        if not group.tails:
            del self._groups[path.digest]

    def longest(self, digests: dict[int, bytes], packed: bytes) -> tuple[int, set[str]]:
        """With how many of its tokens does a prompt agree at most, and with whose? Two stand for more than one."""
        most, programs = 0, set()
        for blocks in reversed(digests):
            if most >= (blocks + 1) * BLOCK + KEPT:
                break  # no path from here on is that long
            group = self._groups.get(digests[blocks])
            if group is None:
                continue
            begun = blocks * BLOCK * WIDTH
            tail = packed[begun : begun + (BLOCK + KEPT) * WIDTH]
            for length in group.lengths:
                paths = group.tails.get(tail[:length]) if length < len(tail) else None
                if paths is None:
                    continue
                agreed, owners = _nearest(paths, tail)
                agreed += blocks * BLOCK
                if agreed > most:
                    most, programs = agreed, set()
                if agreed == most:
                    programs |= owners
        return most, programs


def _nearest(paths: Sequence[_Path], tail: bytes) -> tuple[int, set[str]]:
    """How many tokens of `tail` does a path have at most, and whose do? Of more than two, two. Paths are sorted."""
    if len(paths) == 1:
        return _agreed(paths[0].tail, tail), {paths[0].program}
    at = bisect_left(paths, tail, key=_tail)
    agreed = max(_agreed(path.tail, tail) for path in paths[max(0, at - 1) : at + 1])
    start, owners = tail[: agreed * WIDTH], set()
    for path in _around(paths, at, start):
        owners.add(path.program)
        if len(owners) > 1:
            break
    return agreed, owners


def _around(paths: Sequence[_Path], at: int, start: bytes) -> Iterator[_Path]:
    for step, place in ((1, at), (-1, at - 1)):
        while 0 <= place < len(paths) and paths[place].tail.startswith(start):
            yield paths[place]
            place += step


def _agreed(one: bytes, other: bytes) -> int:
    """With how many tokens do both begin?"""
    if other.startswith(one):
        return len(one) // WIDTH
    length = min(len(one), len(other))
    differ = int.from_bytes(one[:length], "big") ^ int.from_bytes(other[:length], "big")
    return (length - (differ.bit_length() + 7) // 8) // WIDTH


def _tail(path: _Path) -> bytes:
    return path.tail
