"""SGLang's agentic traces: one JSON object, a conversation a program, a turn a segment.

    {"metadata": {...}, "conversations": [[{"messages": [...], "prompt_tokens": 73821}, ...], ...]}

    messages       the turn's new messages: user's and tools', none of the assistant's
    prompt_tokens  tokens of the whole prompt of the turn, all that came before included

Source: sglang/benchmark/datasets/agentic_trace.py of SGLang 0.5.23 (PR 29215). Tool times, arrivals and outputs are
not in it. SGLang replays every turn with 220 output tokens, the mean reply of such agents, at once after the turn
before, and appends the server's own reply to the history. Here: arrivals 0 (the lab gives others), tool times 0, 220
output tokens; but where two prompts lie so near that the reply must have been shorter, the output is what leaves one
new token, so that prompts are as long as recorded. A prompt that is not even two tokens longer than the one before was
cut: all of it but one token counts as kept, the most that can be.

Lost in writing: ids, classes, arrivals, tools, outputs, what a cut keeps, what is shared; texts are filler of about
the right length, a word a token. Refused in writing: child sessions.
"""

import json
from collections.abc import Sequence
from typing import Any

from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan
from astraea_sglang.bench.traces.rows import Row, longest, shown
from astraea_sglang.errors import ConfigError

OUTPUT = 220  # tokens: SGLang's DEFAULT_AGENTIC_OUTPUT_LEN


def read(file: str, text: str) -> list[ProgramPlan]:
    """Which programs are the conversations of an agentic trace? Raises ConfigError with the place of what is wrong."""
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as problem:
        raise ConfigError(f"{file}:{problem.lineno}: not JSON ({problem.msg}); is the file cut off?") from None
    except (ValueError, RecursionError) as problem:
        raise ConfigError(f"{file}:1: not JSON that can be read ({problem})") from None
    top = Row(f"{file}:1", _object(f"{file}:1", whole))
    top.only(("conversations",), ("metadata",))
    conversations = _list(f"{file}:1: conversations", top.fields["conversations"])
    return [_program(f"{file}: conversation {index}", index, each) for index, each in enumerate(conversations)]


def write(plans: Sequence[ProgramPlan]) -> str:
    """How are `plans` written as an agentic trace? Raises ConfigError for child sessions."""
    conversations = []
    for plan in plans:
        if plan.parent is not None or any(segment.spawns for segment in plan.segments):
            raise ConfigError(f"program {plan.id}: agentic-trace cannot hold child sessions; write it as dynamo")
        conversations.append(
            [
                {
                    "messages": [{"role": "user", "content": " ".join(["hi"] * segment.new_prompt)}],
                    "prompt_tokens": prompt,
                }
                for segment, prompt in zip(plan.segments, plan.prompts(), strict=True)
            ]
        )
    return json.dumps({"metadata": {"output_tokens_per_turn": OUTPUT}, "conversations": conversations}) + "\n"


def _program(where: str, index: int, turns: Any) -> ProgramPlan:
    prompts = [_prompt(f"{where}, turn {turn}", each) for turn, each in enumerate(_list(where, turns))]
    segments: list[SegmentPlan] = []
    context, kept = 0, None
    for prompt, after in zip(prompts, [*prompts[1:], None], strict=True):
        new = prompt - (context if kept is None else kept)
        grown = OUTPUT + 1 if after is None else after - prompt
        output = min(OUTPUT, grown - 1) if grown > 1 else OUTPUT
        segments.append(SegmentPlan(new, output, 0.0, None if after is None else "tool", kept=kept))
        context = prompt + output
        kept = after - 1 if after is not None and grown <= 1 else None
    most = longest([OUTPUT])
    return ProgramPlan(f"conversation-{index}", "agentic-trace", 0.0, most, tuple(segments))


def _prompt(where: str, turn: Any) -> int:
    row = Row(where, _object(where, turn))
    row.only(("messages", "prompt_tokens"))
    _list(f"{where}: messages", row.fields["messages"])
    return row.tokens("prompt_tokens")


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {shown(value)} was found; wanted a JSON object")
    return value


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}: {shown(value)} was found; wanted a list that is not empty")
    return value
