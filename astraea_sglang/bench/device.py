"""How long does a forward pass take? An emulated device: constants from a data file that names their sources."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from astraea_sglang.bench.workloads import ProgramPlan
from astraea_sglang.errors import ConfigError

FOLDER = Path(__file__).parent / "devices"


@dataclass(frozen=True, slots=True)
class Device:
    """What a forward pass costs, in seconds: a fixed part, its decoding rows, the KV they read, its prefill."""

    step_s: float  # each pass
    row_s: float  # per decoding row
    kv_token_s: float  # per token of KV that decoding rows read
    prefill_token_s: float  # per prompt token computed
    attention_s: float  # per pair of a computed prompt token and one it attends to
    chunk_tokens: int  # most prompt tokens in one pass

    def step(self, prefills: Iterable[tuple[int, int]], rows: int, kv_tokens: int) -> float:
        """How long is a pass? `prefills` are (tokens computed, context they end at), `rows` decode over `kv_tokens`."""
        seconds = self.step_s + rows * self.row_s + kv_tokens * self.kv_token_s
        for tokens, context in prefills:
            seconds += tokens * (self.prefill_token_s + self.attention_s * (context - tokens / 2))
        return seconds

    def segment(self, prompt: int, cached: int, output: int) -> float:
        """How long is a segment alone on the engine? Tokens in, seconds out, in closed form.

        Chunks of a prompt of which `cached` tokens are in the radix tree, the last with the first output token, then
        `output - 1` decode passes, each of which reads one token of KV more.
        """
        pairs = (prompt**2 - cached**2) / 2  # the sum of `tokens * (context - tokens / 2)` over any chunks
        chunks = -(-(prompt - cached) // self.chunk_tokens)
        prefill = chunks * self.step_s + (prompt - cached) * self.prefill_token_s + pairs * self.attention_s
        decodes = output - 1
        read = decodes * prompt + decodes * (decodes + 1) / 2
        return prefill + decodes * (self.step_s + self.row_s) + read * self.kv_token_s

    def unloaded(self, plan: ProgramPlan, resident: int) -> float:
        """How long is a program in the engine when it is alone there? Seconds, without its tools.

        `resident` tokens of its prompt are in the radix tree when it comes, and nothing it computes is evicted. The KV
        of a segment's last output token is never computed, so the next segment computes it.
        """
        seconds, cached = 0.0, resident
        for prompt, segment in zip(plan.prompts(), plan.segments, strict=True):
            seconds += self.segment(prompt, cached, segment.output)
            cached = prompt + segment.output - 1
        return seconds


def names() -> list[str]:
    """Which devices are there?"""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Device:
    """The device called `name`. Raises ConfigError, which lists those there are."""
    if name not in names():
        raise ConfigError(f"--device {name} is unknown; choose one of: {', '.join(names())}")
    constants = json.loads((FOLDER / f"{name}.json").read_text())["constants"]
    return Device(**{field.name: constants[field.name]["value"] for field in fields(Device)})
