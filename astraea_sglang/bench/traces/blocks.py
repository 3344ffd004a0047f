"""Which blocks does a prompt consist of? `hash_ids` of Mooncake and Dynamo: equal ids, equal prompts up to there."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from astraea_sglang.bench.plans import ProgramPlan, Shared
from astraea_sglang.bench.traces.rows import Row, shown

BLOCK = 512  # tokens: Mooncake's, and what is written
MOST_ID = 2**64 - 1


class _Run(NamedTuple):
    """Tokens `offset` on of an endless text that has a name: equal names, equal texts."""

    name: object
    offset: int
    tokens: int


def hash_ids(row: Row) -> list[int]:
    """Which blocks does a row's prompt consist of? Raises ConfigError unless a list of whole numbers of 64 bits."""
    ids = row.fields.get("hash_ids")
    if not isinstance(ids, list) or {*map(type, ids)} != {int} or min(ids) < 0 or max(ids) > MOST_ID:
        raise row.refused(f"hash_ids is {shown(ids)}; wanted a list of whole numbers, one for each block of the prompt")
    return ids


def block_size(rows: Sequence[Row]) -> int:
    """How many tokens does a block have, so that every row has as many ids as its prompt has blocks?

    512 if that fits; else the power of two that does; else the smallest number. Raises ConfigError at the first row
    that fits no size the rows before it fit.
    """
    least, most = 1, 2**62
    for row in rows:
        tokens, count = row.tokens("input_length"), len(hash_ids(row))
        low, high = -(-tokens // count), (tokens - 1) // (count - 1) if count > 1 else most
        if max(least, low) > min(most, high):
            size = min(most, max(least, BLOCK))
            raise row.refused(
                f"{count} hash_ids for {tokens} tokens; the rows before have blocks of about {size}, which gives "
                f"{-(-tokens // size)}: wanted one id a block, the last block for what is left"
            )
        least, most = max(least, low), min(most, high)
    if least <= BLOCK <= most:
        return BLOCK
    power = 1 << (least - 1).bit_length()
    return power if power <= most else least


def shared(ids: Sequence[int], size: int) -> tuple[Shared, ...]:
    """What does a prompt begin with that others may, too? Its blocks but the last, which is its own new prompt."""
    return tuple(Shared(str(id), size) for id in ids[:-1])


class Blocks:
    """Ids for the blocks of many programs' prompts, as their `Shared` tell who begins with what.

    A `Shared` of just one block that is named by a number keeps it as its id.
    """

    def __init__(self, plans: Sequence[ProgramPlan]) -> None:
        taken = [id for plan in plans for run in plan.prefix if (id := _own_id(run.name, run.tokens)) is not None]
        self._next = max(taken, default=-1) + 1
        self._ids: dict[tuple[int | None, tuple[_Run, ...]], int] = {}

    def of(self, plan: ProgramPlan) -> Iterator[list[int]]:
        """Which blocks does the prompt of each segment of `plan` consist of?"""
        context = [_Run(run.name, 0, run.tokens) for run in plan.prefix]
        for index, segment in enumerate(plan.segments):
            if segment.kept is not None:
                context = list(_cut(context, segment.kept))
            context.append(_Run((plan.id, "prompt", index), 0, segment.new_prompt))
            yield self._chain(context)
            context.append(_Run((plan.id, "output", index), 0, segment.output))

    def _chain(self, context: list[_Run]) -> list[int]:
        ids: list[int] = []
        for runs in _chunks(context):
            run = runs[0]
            known = _own_id(run.name, run.tokens) if len(runs) == 1 and run.offset == 0 else None
            ids.append(self._id(ids[-1] if ids else None, runs) if known is None else known)
        return ids

    def _id(self, before: int | None, runs: tuple[_Run, ...]) -> int:
        id = self._ids.setdefault((before, runs), self._next)
        self._next += id == self._next
        return id


def _own_id(name: object, tokens: int) -> int | None:
    """The id that the name of a run of one block is, if it is one; large ones are not, to leave room for new ids."""
    if tokens != BLOCK or not isinstance(name, str) or not name.isascii() or not name.isdigit() or len(name) > 18:
        return None
    return int(name) if str(int(name)) == name else None


def _cut(context: Iterable[_Run], tokens: int) -> Iterator[_Run]:
    """The first `tokens` tokens of runs."""
    for run in context:
        if tokens <= 0:
            return
        yield run._replace(tokens=min(run.tokens, tokens))
        tokens -= run.tokens


def _chunks(context: Iterable[_Run]) -> Iterator[tuple[_Run, ...]]:
    """The blocks that runs fill, each as the runs it consists of."""
    block: list[_Run] = []
    room = BLOCK
    for run in context:
        offset, left = run.offset, run.tokens
        while left:
            taken = min(left, room)
            block.append(_Run(run.name, offset, taken))
            offset, left, room = offset + taken, left - taken, room - taken
            if not room:
                yield tuple(block)
                block, room = [], BLOCK
    if block:
        yield tuple(block)
