"""Which token ids make up each prompt of a plan, so that a radix tree finds what it would find of the real ones?"""

from array import array
from collections.abc import Sequence

from astraea_sglang.bench.plans import ProgramPlan

FIRST = 10  # below are the ids that models keep for themselves
MOST = 1_048_576  # ids


class Prompts:
    """The prompts of `plans`, asked for in the order in which their segments come.

    Runs of one id each: one for every shared name, one for every program, another where a program drops part of its
    context. Two prompts are alike as far as their plans are, and cost nothing to make.
    """

    def __init__(self, plans: Sequence[ProgramPlan]) -> None:
        self.plans = plans
        self._lengths: dict[int, list[int]] = {}
        self._runs: dict[int, list[tuple[int, int]]] = {}  # of each program: (id, tokens)
        self._ids: dict[str | int, int] = {}  # of shared names and of programs
        self._next = FIRST
        self._paths: dict[
            tuple[int, str], int
        ] = {}  # shared beginnings that were computed: (beginning, name) to longer

    def length(self, number: int, segment: int) -> int:
        """How many tokens has it?"""
        if number not in self._lengths:
            self._lengths[number] = list(self.plans[number].prompts())
        return self._lengths[number][segment]

    def own(self, number: int) -> int:
        """Which id do the program's own tokens have now, those it generates included?"""
        return self._ids[number]

    def ids(self, number: int, segment: int) -> "array[int]":
        """The prompt of a segment, which follows the one asked for before; 64-bit ids."""
        plan = self.plans[number]
        step = plan.segments[segment]
        if segment == 0:
            runs = [(self._id(run.name), run.tokens) for run in plan.prefix]
            self._ids[number] = self._new()
        else:
            runs = self._runs[number]
            runs.append((self.own(number), plan.segments[segment - 1].output))
            if step.kept is not None and step.kept < sum(tokens for _, tokens in runs):
                runs = _cut(runs, step.kept)
                self._ids[number] = self._new()
        runs.append((self.own(number), step.new_prompt))
        self._runs[number] = runs
        found = array("q")
        for id, tokens in runs:
            found += array("q", (id,)) * tokens
        return found

    def known(self, number: int, segment: int) -> int:
        """How many tokens of a prompt were computed before, by its program or as what it shares with others?"""
        plan = self.plans[number]
        if segment == 0:
            return self._shared(plan)
        before = self.length(number, segment - 1) + plan.segments[segment - 1].output - 1  # the last has no KV yet
        kept = plan.segments[segment].kept
        return before if kept is None else min(kept, before)

    def computed(self, number: int) -> None:
        """A segment of the program has ended: what it shares is known from now on."""
        beginning = 0
        for run in self.plans[number].prefix:
            beginning = self._paths.setdefault((beginning, run.name), len(self._paths) + 1)

    def _shared(self, plan: ProgramPlan) -> int:
        tokens = beginning = 0
        for run in plan.prefix:
            found = self._paths.get((beginning, run.name))
            if found is None:
                break
            beginning, tokens = found, tokens + run.tokens
        return tokens

    def _id(self, name: str) -> int:
        if name not in self._ids:
            self._ids[name] = self._new()
        return self._ids[name]

    def _new(self) -> int:
        self._next += 1
        return self._next - 1


def _cut(runs: Sequence[tuple[int, int]], tokens: int) -> list[tuple[int, int]]:
    """The first `tokens` of `runs`."""
    kept = []
    for id, length in runs:
        if tokens <= 0:
            break
        kept.append((id, min(length, tokens)))
        tokens -= length
    return kept
