"""How long does a forward pass take? An emulated device: constants from a data file that names their sources."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from astraea_sglang.bench.plans import ProgramPlan, busy
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
    host_token_s: float = 0.0  # per token copied between device and host, in either direction, beside all this

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

    def alone(self, family: Sequence[ProgramPlan], resident: int | None = None) -> float:
        """How long has a program anything in the engine when it is alone there? Seconds, without its tools.

        `family` is the program and its child sessions, which are taken not to slow each other. `resident` tokens of its
        prompt are in the radix tree when it comes, all that it shares unless said, and nothing it computes is evicted.
        """
        return busy([(begun, ended) for _, _, begun, ended in self.schedule(family, resident)])

    def schedule(
        self, family: Sequence[ProgramPlan], resident: int | None = None
    ) -> list[tuple[ProgramPlan, int, float, float]]:
        """When would each segment of a program begin and end, alone on the engine? Seconds from its arrival.

        The KV of a segment's last output token is never computed, so the next segment computes it.
        """
        by_id = {plan.id: plan for plan in family}
        found: list[tuple[ProgramPlan, int, float, float]] = []

        def run(plan: ProgramPlan, now: float, cached: int) -> float:
            for index, (prompt, segment) in enumerate(zip(plan.prompts(), plan.segments, strict=True)):
                cached = cached if segment.kept is None else min(cached, segment.kept)
                begun, now = now, now + self.segment(prompt, cached, segment.output)
                found.append((plan, index, begun, now))
                cached = prompt + segment.output - 1
                ends = [run(by_id[child], now, by_id[child].shared_prefix) for child in segment.spawns]
                now = max([now + segment.tool_s, *ends] if index + 1 < len(plan.segments) else [now])
            return now

        run(family[0], 0.0, family[0].shared_prefix if resident is None else resident)
        return found


def names() -> list[str]:
    """Which devices are there?"""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Device:
    """The device called `name`, or in the file of that name. Raises ConfigError, which lists those there are."""
    path = Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"
    if path.parent == FOLDER and name not in names():
        raise ConfigError(f"--device {name} is unknown; choose one of: {', '.join(names())}, or a file NAME.json")
    try:
        constants = json.loads(path.read_text())["constants"]
        values = {each.name: constants[each.name]["value"] for each in fields(Device) if each.name in constants}
        return Device(**values)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ConfigError(
            f"--device {name} cannot be read ({type(problem).__name__}: {problem}); "
            "make one: astraea bench calibrate --url http://127.0.0.1:30000 --out my.json"
        ) from None
