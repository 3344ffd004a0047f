"""`astraea bench recognise`: is an agent that sends no identity recognised by its prompts? Plans replayed, no engine.

The lab's programs have made-up token ids of the lengths that their plans say, and what makes it hard is added on
purpose (`Hard`); BFCL's have the embedded model's, their tools executed and everything rendered by its chat template.
"""

import functools
import heapq
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from astraea_sglang.beginnings import Prompt
from astraea_sglang.bench import workloads
from astraea_sglang.bench.crowd import Crowd
from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan, Shared
from astraea_sglang.bench.wire import tokens
from astraea_sglang.continuations import Continuations
from astraea_sglang.errors import ConfigError
from astraea_sglang.fleet import bfcl
from astraea_sglang.fleet.plan import make_plan

PREFILL_S, DECODE_S = 0.0001, 0.015  # seconds a token of what is new in a prompt, and of an output: no queue
TWIN_GAP_S = 0.5  # seconds between the arrivals of twins
CHAT_SYSTEM, CHAT_OWN, CHAT_OUTPUT = 400, 60, 120  # tokens


@dataclass(frozen=True, slots=True)
class Hard:
    """What makes programs hard to recognise? By default only that all outputs begin alike, as tool calls do."""

    opening: int = 4  # tokens with which every output begins
    chats: int = 0  # one-shot chats with one system prompt that come with each program
    twins: int = 1  # programs with the same first prompt, each half a second after the other
    alike: int = 1  # segments of twins that are the same, output and tool's answer; 0 for sampled outputs
    changed: int = 0  # last tokens of an output that its follow-up has otherwise; BFCL: all after an argument's colon
    trimmed: float = 0.0  # share of follow-ups whose client has dropped the middle of its history
    thought: float = 0.0  # share of every output, at its beginning, that its follow-up lacks
    most: int = 4096  # finished segments that are remembered


CASES = {
    "as they are": Hard(),
    "one-shot chats, 5 each": Hard(chats=5),
    "8 samples of one prompt": Hard(twins=8, alike=0),
    "3 greedy twins": Hard(twins=3),
    "8 tokens retokenised": Hard(changed=8),
    "history trimmed, 10%": Hard(trimmed=0.1),
    "thoughts dropped": Hard(thought=0.5),
    "3 greedy twins, 32 kept": Hard(twins=3, most=32),
}
BFCL_CASES = {
    "as they are": Hard(),
    "3 greedy twins": Hard(twins=3),
    "arguments spelled anew": Hard(changed=1),
    "3 greedy twins, 32 kept": Hard(twins=3, most=32),
}

Turn = tuple[Sequence[int], Sequence[int]]  # prompt and output of a segment, in token ids
Talk = Callable[[int, int], Turn]  # by the program's number and the segment's


class Row(NamedTuple):
    """How many requests were recognised? `follow_ups` should be; of `claimed` a program was said, of `right` theirs."""

    workload: str
    case: str
    seed: int
    requests: int
    follow_ups: int
    claimed: int
    right: int
    ambiguous: int

    @property
    def precision(self) -> float:
        """Of those said to continue a program, which share did?"""
        return self.right / self.claimed if self.claimed else 1.0

    @property
    def recall(self) -> float:
        """Of those that continue a program, which share was said to, and to continue that one?"""
        return self.right / self.follow_ups if self.follow_ups else 1.0


def run(workload: str = "coding,infercept,mixed,bfcl", seeds: str = "1", programs: int | None = None) -> int:
    """Print precision and recall of every case of some workloads and seeds, separated by commas. Raises ConfigError."""
    console = Console()
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {seeds!r}: give whole numbers separated by commas, such as 1,2,3") from None
    rows = []
    with console.status("") as status:
        for name in workload.split(","):
            for seed in numbers:
                for row in measure(name, seed, programs=programs):
                    status.update(f"{name}, seed {seed}: {row.case}")
                    rows.append(row)
    tell(rows, console)
    return 0


def measure(
    workload: str, seed: int, *, programs: int | None = None, cases: Mapping[str, Hard] | None = None
) -> Iterator[Row]:
    """How well are the programs of a workload recognised, in each of the cases? All of them if none are given.

    `programs` come, twins counted and chats not, the workload's own number if not given, at load 1.0. Equal arguments,
    equal rows. Raises ConfigError for a workload that there is not.
    """
    chosen = workloads.workload(workload)
    if workload == "bfcl":
        yield from (
            _replayed(workload, case, seed, hard, *_tasks(programs, seed, hard))
            for case, hard in (cases or BFCL_CASES).items()
        )
        return
    for case, hard in (cases or CASES).items():
        number = max(1, (programs or chosen.programs) // hard.twins)
        plans = workloads.plan(workload, load=1.0, programs=number, seed=seed)
        made, leaders = _twins([*plans, *_chats(plans, hard.chats)], hard)
        yield _replayed(workload, case, seed, hard, made, _Talk(made, leaders, seed, hard).turn)


def tell(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print rows as a table, with what is made up in them."""
    console = console or Console()
    for title in dict.fromkeys(f"{row.workload}, seed {row.seed}" for row in rows):
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", show_edge=False)
        table.add_column("by prompts alone")
        for column in ("follow-ups", "ambiguous", "wrong", "precision", "recall"):
            table.add_column(column, justify="right")
        for row in rows:
            if f"{row.workload}, seed {row.seed}" == title:
                counts = row.follow_ups, row.ambiguous, row.claimed - row.right
                shares = row.precision, row.recall
                table.add_row(row.case, *(f"{count:,}" for count in counts), *(f"{share:.2%}" for share in shares))
        console.print(table, "")
    made_up = "token ids are made up, but for bfcl: its tasks, rendered by the embedded model's chat template"
    console.print(made_up, highlight=False, soft_wrap=True)


def _replayed(workload: str, case: str, seed: int, hard: Hard, plans: Sequence[ProgramPlan], talk: Talk) -> Row:
    """Every segment comes when its program's tool is done, and takes its own time; nobody waits."""
    known, crowd = Continuations(hard.most), Crowd(plans)
    owners: dict[str, int] = {}  # of the programs that the engine sees: each begins with a request that is nobody's
    ends: list[tuple[float, int, int, str, tuple[Prompt, Sequence[int]]]] = []
    requests = follow_ups = claimed = right = 0
    while ends or crowd.next_due is not None:
        due = crowd.next_due
        if ends and (due is None or ends[0][0] <= due):
            now, number, segment, program, (prompt, output) = heapq.heappop(ends)
            known.finished(program, prompt, output)
            if hard.thought:
                known.finished(program, prompt, output[int(hard.thought * len(output)) :])
            crowd.ended(number, segment, now)
            continue
        for now, number, segment in crowd.due(due or 0.0):
            ids, output = talk(number, segment)
            prompt = Prompt(ids)
            found = known.continued(prompt)
            requests += 1
            follow_ups += segment > 0
            claimed += found is not None
            right += found is not None and owners[found] == number
            program = found or f"{number}.{segment}"
            owners.setdefault(program, number)
            step = plans[number].segments[segment]
            end = now + PREFILL_S * step.new_prompt + DECODE_S * step.output
            heapq.heappush(ends, (end, number, segment, program, (prompt, output)))
    return Row(workload, case, seed, requests, follow_ups, claimed, right, known.counts["ambiguous"])


def _chats(plans: Sequence[ProgramPlan], each: int) -> list[ProgramPlan]:
    chat = (SegmentPlan(CHAT_OWN, CHAT_OUTPUT, 0.0, None),)
    return [
        ProgramPlan(f"{plan.id} chat {i}", "oneshot", plan.arrival_s, CHAT_OUTPUT, chat, (Shared("chat", CHAT_SYSTEM),))
        for plan in plans
        for i in range(each)
    ]


def _twins(plans: Sequence[ProgramPlan], hard: Hard) -> tuple[list[ProgramPlan], list[str]]:
    """Every program that has no part in sub-agents as often as it is to come, and whose twin each is, by its id."""
    made, leaders = [], []
    for plan in plans:
        alone = plan.parent is None and not any(segment.spawns for segment in plan.segments)
        for i in range(hard.twins if alone else 1):
            made.append(replace(plan, id=f"{plan.id}/{i}" if i else plan.id, arrival_s=plan.arrival_s + i * TWIN_GAP_S))
            leaders.append(plan.id)
    return made, leaders


class _Talk:
    """Prompts and outputs of plans, in made-up tokens."""

    def __init__(self, plans: Sequence[ProgramPlan], leaders: Sequence[str], seed: int, hard: Hard) -> None:
        self._plans, self._leaders, self._seed, self._hard = plans, leaders, seed, hard
        self._contexts: dict[int, array[int]] = {}
        self._trim = Random(f"trimmed {seed}")

    def turn(self, number: int, segment: int) -> Turn:
        """The prompt and the output of a segment, which follows the one asked for before."""
        plan, hard = self._plans[number], self._hard
        step = plan.segments[segment]
        context = self._contexts.get(number)
        if context is None:
            context = array("q", (token for run in plan.prefix for token in _shared(run)))
        elif step.kept is not None:
            del context[step.kept :]
        elif self._trim.random() < hard.trimmed:
            del context[plan.shared_prefix : (plan.shared_prefix + len(context)) // 2]
        context.extend(tokens(f"{self._name(number, segment, max(1, hard.alike))} prompt", step.new_prompt))
        prompt = context[:]
        output = array("q", tokens("opening", min(hard.opening, step.output)))
        output.extend(tokens(f"{self._name(number, segment, hard.alike)} output", step.output - len(output)))
        changed = min(hard.changed, step.output)
        context += output[int(hard.thought * step.output) : step.output - changed]
        context.extend(tokens(f"{plan.id} {segment} anew", changed))
        self._contexts[number] = context
        return prompt, output

    def _name(self, number: int, segment: int, alike: int) -> str:
        return f"{self._seed} {self._leaders[number] if segment < alike else self._plans[number].id} {segment}"


@functools.cache
def _shared(run: Shared) -> list[int]:
    return tokens(f"shared {run.name}", run.tokens)


def _tasks(programs: int | None, seed: int, hard: Hard) -> tuple[list[ProgramPlan], Talk]:
    """BFCL's tasks as agents would play them that make no mistake, over the chat API: what their server sees."""
    from transformers import AutoTokenizer

    from astraea_sglang import smollm2

    tokenizer = AutoTokenizer.from_pretrained(str(smollm2.build()))
    tasks = bfcl.tasks()
    number = max(1, (programs or len(tasks)) // hard.twins)
    fleet = make_plan(tasks, programs=number, seed=seed, gap_s=1 / workloads.WORKLOADS["bfcl"].knee, factor=1.0)
    plans: list[ProgramPlan] = []
    turns: dict[str, list[Turn]] = {}
    for program in fleet:
        turns[program.id] = list(_played(program.task, tokenizer, hard))
        steps = [
            SegmentPlan(len(prompt), len(output), tool_s, "tool")
            for (prompt, output), tool_s in zip(turns[program.id], program.tool_seconds, strict=True)
        ]
        plans.append(ProgramPlan(program.id, program.tool_class, program.arrival, 512, tuple(steps)))
    plans, leaders = _twins(plans, hard)
    return plans, lambda number, segment: turns[leaders[number]][segment]


def _played(task: bfcl.Task, tokenizer: Any, hard: Hard) -> Iterator[Turn]:
    toolbox = bfcl.Toolbox(task)
    messages: list[dict[str, Any]] = [{"role": "system", "content": toolbox.signatures()}]
    for text, calls in zip(task.turns, task.calls, strict=True):
        messages.append({"role": "user", "content": text})
        for call in calls:
            name, values, named = bfcl.parse_call(call)
            arguments = {str(i): value for i, value in enumerate(values)} | named
            sent = json.dumps(arguments)  # what a server's parser gives its client, and gets back
            said = json.dumps(arguments, separators=(",", ":")) if hard.changed else sent
            output = f'<tool_call>{{"name":"{name}", "arguments":{said}}}</tool_call><|im_end|>'
            rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            yield tokenizer(rendered).input_ids, tokenizer(output).input_ids
            used = {"type": "function", "function": {"name": name, "arguments": sent}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [used]})
            messages.append({"role": "tool", "content": toolbox.call(call)})
