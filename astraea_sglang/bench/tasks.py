"""Real tasks as plans: BFCL's, their prompts counted in tokens of the embedded model, their tools executed."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan, Shared
from astraea_sglang.fleet import agents, bfcl
from astraea_sglang.fleet.plan import PlannedProgram, make_plan


def plan(arrivals: Sequence[float], seed: int) -> list[ProgramPlan]:
    """What would agents do that come at `arrivals` (seconds) and make no mistake? Every tool call is executed for it.

    Tasks and tool latencies are those of fleet/plan.py, tasks anew when all have been drawn; lengths are tokens of the
    embedded model. A system prompt is shared by tasks with the same tools.
    """
    from tokenizers import Tokenizer

    from astraea_sglang import smollm2

    found = Tokenizer.from_file(str(smollm2.build() / "tokenizer.json"))
    tasks = bfcl.tasks()
    fleet = [
        program
        for first in range(0, len(arrivals), len(tasks))
        for program in make_plan(
            tasks, programs=min(len(tasks), len(arrivals) - first), seed=seed + first, gap_s=1.0, factor=1.0
        )
    ]
    return [
        _played(replace(program, id=f"p{number:05}", arrival=arrival), lambda text: len(found.encode(text).ids))
        for number, (program, arrival) in enumerate(zip(fleet, arrivals, strict=True))
    ]


def _played(program: PlannedProgram, count: Callable[[str], int]) -> ProgramPlan:
    """The segments of an agent that generates every reference call, with the answers its tools really give."""
    task, toolbox, latencies = program.task, bfcl.Toolbox(program.task), iter(program.tool_seconds)
    system = count(agents.system(toolbox))
    segments: list[SegmentPlan] = []
    new = 0
    for text, calls in zip(task.turns, task.calls, strict=True):
        new += count(agents.user(text))
        for call in calls:
            new += count(agents.ASSISTANT)
            segments.append(SegmentPlan(new, count(call) + 1, next(latencies), call.partition("(")[0]))
            new = count(agents.answer(toolbox.call(call)))
    segments[-1] = segments[-1]._replace(tool_s=0.0, tool=None)
    shared = (Shared("bfcl " + " ".join(task.tools), system),)
    return ProgramPlan(program.id, program.tool_class, program.arrival, agents.MAX_CALL_TOKENS, tuple(segments), shared)
