"""What is left of a program? Declared structure is the prior, learned history takes over as samples arrive."""

from typing import Any

from astraea_sglang.history import END, FORMAT, History, Rest
from astraea_sglang.program import Program, Segment
from astraea_sglang.structure import ProgramStructure
from astraea_sglang.toolcalls import parts
from astraea_sglang.tooltimes import ToolTimes

PRIOR_OUTPUT = 128.0  # tokens; InferCept's mean segment, until something has been seen
PRIOR_NEW = 64.0  # tokens a tool's answer adds; InferCept's default
MAX_RESTS = 4096
OWN_WEIGHT = 2.0  # a program's own mean counts in full only after a few segments


class Predictor:
    """Everything that is learned, and what to make of it. `mode` is one of config.PREDICTIONS.

    `declared` uses what clients declare and learns nothing, `learned` the other way round; `off` expects a program to
    do as much again as it has done, which makes orders by remaining work orders by attained service.
    """

    def __init__(self, mode: str = "both") -> None:
        self.declares = mode in ("both", "declared")
        self.learns = mode in ("both", "learned")
        self.history = History()
        self.tools = ToolTimes()
        self._rests: dict[tuple[str, str, int], Rest] = {}  # what declared structures say, by digest, node and visit

    def arrived(
        self, segment: Segment, before: str | None, structure: ProgramStructure | None = None
    ) -> tuple[float, Rest]:
        """A segment came, after the node `before`: how many tokens will it generate, and what does its program then?

        `structure` is what its program declares.
        """
        program = segment.program
        if self.learns and not program.anonymous:
            new = segment.prompt_tokens - segment.known
            self.history.arrived(program.program_class, before, segment.node, new)
        structure = structure if self.declares and segment.declared is not None else None
        declared = structure.segment(segment.declared) if structure and segment.declared else None
        prior = segment.hints.osl if self.declares else None
        if declared and declared.expected_tokens is not None:
            prior = declared.expected_tokens
        prior = PRIOR_OUTPUT if prior is None else prior
        output = self.history.output(program.program_class, segment.node, prior) if self.learns else prior
        if declared is None:
            output = (program.generated + OWN_WEIGHT * output) / (program.finished_segments + OWN_WEIGHT)
        output = max(1.0, min(output, segment.max_new_tokens))
        return output, self._later(segment, output, structure)

    def finished(self, segment: Segment) -> None:
        """A segment ran to its end."""
        if self.learns:
            self.history.generated(segment.program.program_class, segment.node, segment.generated)

    def came_alone(self, segment: Segment) -> None:
        """The first segment of a program that seemed to be a single request, and was not."""
        if self.learns:
            new = segment.prompt_tokens - segment.known
            self.history.arrived(segment.program.program_class, None, segment.node, new)

    def ended(self, program: Program) -> None:
        """A program is over: no segment follows the last one."""
        if self.learns and program.node is not None and not program.anonymous:
            self.history.ended(program.program_class, program.node)

    def returned(self, program: Program, seconds: float) -> None:
        """A program's tool took `seconds`."""
        if self.learns:
            self.tools.observe(program.program_class, program.next_tool or "", seconds)

    def took(self, program: Program, tool: str, seconds: float) -> None:
        """One of several tools that a program runs at once took `seconds`."""
        if self.learns:
            self.tools.observe(program.program_class, tool, seconds)

    def tool_remaining(self, program: Program, elapsed: float) -> float | None:
        """For how many seconds will a paused program's tool still run? The median; None if nothing is known.

        A call that has outlasted its declared time is expected to take as long again.
        """
        remaining = self._median(program.program_class, program.next_tool or "", elapsed) if self.learns else None
        if remaining is None and self.declares and program.expected_tool_s is not None:
            return program.expected_tool_s - elapsed if elapsed < program.expected_tool_s else elapsed
        return remaining

    def _median(self, program_class: str, tools: str, elapsed: float) -> float | None:
        """Of tools that run at once, the one that takes longest counts, until they have been seen together."""
        together = self.tools.median(program_class, tools, elapsed)
        if together is not None or len(names := parts(tools)) == 1:
            return together
        alone = [self.tools.median(program_class, name, elapsed) for name in names]
        return None if None in alone else max(median for median in alone if median is not None)

    def tool_mean(self, program: Program) -> float | None:
        """How long does a paused program's tool take on average, seconds? None if nothing is known."""
        mean = self.tools.mean(program.program_class, program.next_tool or "", 0.0) if self.learns else None
        return program.expected_tool_s if mean is None and self.declares else mean

    def tool_ttl(self, program: Program, benefit: float) -> float:
        """For how many seconds does it pay to keep a paused program's KV, if that saves `benefit` seconds?"""
        return self.tools.ttl(program.program_class, program.next_tool or "", benefit) if self.learns else benefit

    def dump(self) -> dict[str, Any]:
        """Everything learned, JSON-ready: what `load` reads back in another process."""
        return {"format": FORMAT, "classes": self.history.dump(), "tools": self.tools.dump()}

    def load(self, dumped: Any) -> None:
        """Take what `dump` gave. Raises ValueError when it has another form; then nothing is taken."""
        history, tools = History(), ToolTimes()
        try:
            if dumped["format"] != FORMAT:
                raise ValueError(f"format {dumped['format']!r} is not {FORMAT}")
            history.load(dumped["classes"])
            tools.load(dumped["tools"])
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"not a history of ours ({error!r})") from None
        self.history, self.tools = history, tools

    def _later(self, segment: Segment, output: float, structure: ProgramStructure | None) -> Rest:
        program, node = segment.program, segment.declared
        if program.closing or program.anonymous:
            return END
        if structure is not None and node is not None:
            prior = self._after(program.structure_ref or "", structure, node, program.visits.get(node, 1))
        else:  # as much again as it has done
            done = program.segments
            prior = Rest(done, done * PRIOR_NEW, done * output)
        return self.history.rest(program.program_class, segment.node, prior) if self.learns else prior

    def _after(self, ref: str, structure: ProgramStructure, node: str, visits: int) -> Rest:
        """Each answer is worked out once: it takes up to a millisecond."""
        rest = self._rests.get((ref, node, visits))
        if rest is None:
            if len(self._rests) >= MAX_RESTS:
                self._rests.clear()
            after = structure.after(node, visits, PRIOR_OUTPUT)
            rest = self._rests[ref, node, visits] = Rest(after.segments, after.new_tokens, after.expected_tokens)
        return rest
