"""What does a program tell the engine of itself? From nothing but its name to the whole truth."""

from dataclasses import replace
from functools import cache

from astraea_sglang.bench.plans import ProgramPlan
from astraea_sglang.bench.workloads import INFERCEPT
from astraea_sglang.hints import Hints
from astraea_sglang.structure import ProgramStructure, parse

KINDS = ("class", "none", "declared", "oracle")


def hints(plan: ProgramPlan, index: int, kind: str) -> Hints:
    """What does the segment `index` of `plan` say? `kind` is one of KINDS.

    `class` names the program's class and its next tool, `none` the program alone. `declared` adds what the author of
    such an agent knows: its structure, with what is usual. `oracle` declares what will happen, every length and
    every time.
    """
    segment, last = plan.segments[index], index == len(plan.segments) - 1
    if kind == "none":
        return Hints(plan.id, segment=index, final=last, parent_id=plan.parent)
    told = Hints(plan.id, plan.program_class, segment=index, next_tool=segment.tool, final=last, parent_id=plan.parent)
    if kind == "class":
        return told
    if kind == "declared" and plan.program_class not in (*INFERCEPT, "coding", "oneshot"):
        return told  # nobody has said what is usual of it
    structure = _usual(plan.program_class) if kind == "declared" else _exact(plan)
    node = f"s{index}" if kind == "oracle" else ("answer" if last else "act")
    tool_s = segment.tool_s if kind == "oracle" else _usual_tool_s(plan.program_class)
    return replace(
        told, expected_tool_s=None if last else tool_s, structure=structure if index == 0 else None, node=node
    )


@cache
def _usual(program_class: str) -> ProgramStructure:
    if program_class == "oneshot":
        return parse({"nodes": [{"id": "answer", "kind": "segment", "max_tokens": 1000, "expected_tokens": 250}]})
    if program_class == "coding":
        usual, most, output, new, longest = 26, 60, 220, 400, 1000
    else:
        of = INFERCEPT[program_class]
        usual, most, output, new, longest = round(of.calls_mean), 99, of.output_mean, of.answer_mean, 500
    lengths = {"max_tokens": longest, "expected_tokens": int(output), "new_tokens": int(new)}
    tool = {"tool": program_class, "expected_s": _usual_tool_s(program_class)}
    return parse(
        {
            "nodes": [
                {"id": "rounds", "kind": "loop", "body": "act", "most": most, "expected": usual, "next": ["answer"]},
                {"id": "act", "kind": "segment", **lengths, "next": ["tool"]},
                {"id": "tool", "kind": "tool", **tool, "next": ["rounds"]},
                {"id": "answer", "kind": "segment", **lengths},
            ]
        }
    )  # fmt: skip


def _usual_tool_s(program_class: str) -> float:
    return (
        0.8 if program_class == "coding" else INFERCEPT[program_class].tool_mean if program_class in INFERCEPT else 0.0
    )


def _exact(plan: ProgramPlan) -> ProgramStructure:
    nodes = []
    for index, segment in enumerate(plan.segments):
        lengths = {"max_tokens": segment.output, "expected_tokens": segment.output, "new_tokens": segment.new_prompt}
        last = index == len(plan.segments) - 1
        nodes.append({"id": f"s{index}", "kind": "segment", **lengths, "next": [] if last else [f"t{index}"]})
        if not last:
            tool = {"tool": segment.tool, "expected_s": segment.tool_s}
            nodes.append({"id": f"t{index}", "kind": "tool", **tool, "next": [f"s{index + 1}"]})
    return parse({"nodes": nodes})
