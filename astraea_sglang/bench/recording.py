"""What did a fleet of agents do? Its generations as they begin and end, as plans of programs: no HTTP, no clock."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan
from astraea_sglang.bench.traces.rows import longest
from astraea_sglang.conventions import read, together
from astraea_sglang.errors import HintError
from astraea_sglang.hints import ID_LENGTH, Hints, decoded, parse

ROUTES = ("/generate", "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")
CHARACTERS = 4  # of a request's body in one token, where the server does not tell the tokens of its prompt


class Caller(NamedTuple):
    """Who asks for a generation: `program` is None for a request without identity."""

    program: str | None
    parent: str | None = None
    program_class: str = ""
    tool: str | None = None


class Usage(NamedTuple):
    """Tokens of one generation; `cached` of the prompt, as the server tells."""

    prompt: int
    output: int
    cached: int = 0
    estimated: bool = False  # the server did not tell the tokens


class Recorded(NamedTuple):
    """The programs, and how often something was not as plain as a plan has it."""

    plans: list[ProgramPlan]
    notes: Counter[str]


def caller(headers: Mapping[str, str], body: object) -> Caller:
    """Who asks, by any convention? What is malformed tells nothing."""
    told = body if isinstance(body, Mapping) else {}
    hints = _hints(told)
    with suppress(HintError):
        hints = together(hints, read(headers, told))
    parent = hints.parent_id if hints.parent_id != hints.program_id else None
    return Caller(hints.program_id, parent, hints.program_class, hints.next_tool)


def _hints(body: Mapping[Any, Any]) -> Hints:
    envelope, params = body.get("kv_hints"), body.get("sampling_params", body)
    actions = envelope.get("actions") if isinstance(envelope, Mapping) else None
    actions = [action for action in actions if isinstance(action, Mapping)] if isinstance(actions, list) else []
    custom = params.get("custom_params") if isinstance(params, Mapping) else None
    told = [action.get("payload") for action in actions if action.get("action_type") == "astraea.program"]
    if not told and isinstance(custom, Mapping) and "astraea" in custom:
        told = [custom["astraea"]]
    try:
        return parse(decoded(told[-1])) if told else Hints()
    except HintError:
        return Hints()


class Tally:
    """How many tokens did an answer take? Fed with its bytes as they come, of a stream of events or of one JSON text.

    They are what the server tells: in `usage` or `meta_info`, in a stream in the last chunk that has it. Where it does
    not tell, output tokens are the chunks with content, and prompt tokens the length of the request over 4 characters.
    An answer that is compressed by another means than gzip or deflate tells nothing, and counts as empty.
    """

    def __init__(self, streamed: bool, body_length: int) -> None:
        self._streamed, self._guess = streamed, max(1, body_length // CHARACTERS)
        self._rest = b""
        self.id: str | None = None  # what the server calls the request
        self._told: dict[int, dict[str, int]] = {}
        self._chunks = 0

    def feed(self, data: bytes) -> None:
        """More bytes of the answer."""
        self._rest += data
        if self._streamed:
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    self._event(line[5:])

    def usages(self) -> list[Usage]:
        """What was told or counted until now, for each generation of the request; none if nothing was generated."""
        if not self._streamed:
            self._event(self._rest)
            self._rest = b""
        told = [self._told[index] for index in sorted(self._told)] or [{}]
        counted = self._chunks if len(told) == 1 else 0
        usages = [
            Usage(
                one.get("prompt", self._guess),
                one.get("output", counted),
                one.get("cached", 0),
                not {"prompt", "output"} <= one.keys(),
            )
            for one in told
        ]
        return [usage for usage in usages if usage.output >= 1]

    def _event(self, data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):  # the end mark of a stream, an answer cut off
            return
        for index, one in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(one, dict):
                at = one.get("index") if isinstance(one.get("meta_info"), dict) else index
                self._absorb(at if isinstance(at, int) else index, one)
                self._chunks += _has_content(one)

    def _absorb(self, index: int, chunk: dict[str, Any]) -> None:
        meta = chunk.get("meta_info")
        id = (meta if isinstance(meta, dict) else chunk).get("id")
        self.id = self.id or (id if isinstance(id, str) else None)
        for holder in (chunk, chunk.get("message"), chunk.get("response")):
            for key in ("meta_info", "usage"):
                told = holder.get(key) if isinstance(holder, dict) else None
                if isinstance(told, dict):
                    known = self._told.setdefault(index, {})
                    for name, tokens in _tokens(told):
                        if tokens > known.get(name, 0):
                            known[name] = tokens


def _tokens(told: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Prompt, output and cached tokens as SGLang, OpenAI and Anthropic (whose input is without cached) tell them."""
    details = told.get("prompt_tokens_details") or told.get("input_tokens_details")
    details = details if isinstance(details, Mapping) else {}
    beside = [_whole(told, "cache_read_input_tokens"), _whole(told, "cache_creation_input_tokens")]
    yield "prompt", _whole(told, "prompt_tokens") or (_whole(told, "input_tokens") + sum(beside))
    yield "output", _whole(told, "completion_tokens") or _whole(told, "output_tokens")
    yield "cached", _whole(told, "cached_tokens") or _whole(details, "cached_tokens") or beside[0]


def _whole(told: Mapping[str, Any], key: str) -> int:
    value = told.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _has_content(chunk: dict[str, Any]) -> bool:
    kind, choices = chunk.get("type"), chunk.get("choices")
    if isinstance(kind, str) and kind.endswith(("_delta", ".delta")):  # Anthropic's, Responses'
        return kind != "message_delta"
    for choice in choices if isinstance(choices, list) else ():
        delta = choice.get("delta", choice) if isinstance(choice, dict) else None
        if isinstance(delta, dict) and any(
            delta.get(k) for k in ("content", "reasoning_content", "tool_calls", "text")
        ):
            return True
    return False


@dataclass(slots=True)
class _Call:
    number: int
    caller: Caller
    begun: float
    ended: float = 0.0
    usages: list[Usage] = field(default_factory=list)
    id: str | None = None  # the server's


class Recording:
    """All generations so far. The clock is its caller's: seconds from any zero, never backwards."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self.empty = 0  # generations that failed or gave nothing

    def begun(self, caller: Caller, now: float) -> int:
        """A request came: which number has it?"""
        self._calls.append(_Call(len(self._calls), caller, now))
        return len(self._calls) - 1

    def ended(
        self, number: int, now: float, usages: Sequence[Usage], *, id: str | None = None, program: str | None = None
    ) -> None:
        """The last byte of its answer went out, or none will: `usages` is empty when nothing was generated.

        The server calls the request `id`; one that names no program continues `program`, as the server found: the id
        of that program's first request.
        """
        call = self._calls[number]
        call.ended, call.usages, call.id = now, list(usages), id
        if call.caller.program is None:
            call.caller = call.caller._replace(program=program)
        self.empty += not usages

    def recorded(self, *, trees: bool) -> Recorded:
        """Which programs are those that ended? In the order of their first requests; child sessions only with `trees`.

        Arrivals count from the first request. A tool's time is from the end of a segment (or of the child sessions it
        began, if later) to the next request. What is kept of a context that got shorter is at most what the server
        said it had cached. Requests of one program at the same time, and the requests of a batch, are each a program.
        """
        notes = Counter({"failed or empty": self.empty})
        chains = _chains([call for call in self._calls if call.usages], notes)
        spawned = _spawned(chains, notes) if trees else {}
        children: dict[tuple[str, int], list[str]] = {}
        for child, at in spawned.items():
            children.setdefault(at, []).append(child)
        start = min((calls[0].begun for calls in chains.values()), default=0.0)
        return Recorded([_program(id, chains, spawned, children, start) for id in chains], +notes)


def _chains(calls: Sequence[_Call], notes: Counter[str]) -> dict[str, list[_Call]]:
    chains: dict[str, list[_Call]] = {}
    for call in calls:
        notes["without token counts"] += any(usage.estimated for usage in call.usages)
        own = call.id if call.id not in chains else None  # there are servers that call all requests alike
        id = call.caller.program or own or f"request-{call.number}"
        alone = f"{id[: ID_LENGTH - 24]}+{call.number}"
        if len(call.usages) > 1:
            notes["batches"] += 1
            for index, usage in enumerate(call.usages):
                chains[f"{alone}.{index}"] = [_Call(call.number, call.caller, call.begun, call.ended, [usage])]
        elif id in chains and chains[id][-1].ended > call.begun:
            notes["beside another request of their program"] += 1
            chains[alone] = [call]
        else:
            chains.setdefault(id, []).append(call)
    return chains


def _spawned(chains: Mapping[str, list[_Call]], notes: Counter[str]) -> dict[str, tuple[str, int]]:
    """After which segment of which parent does each child session begin? Those a parent did not wait for are none."""
    spawned: dict[str, tuple[str, int]] = {}
    for id, calls in chains.items():
        parent = calls[0].caller.parent
        if parent is None or parent not in chains or chains[parent][0].number >= calls[0].number:
            continue
        above = chains[parent]
        at = max(index for index, call in enumerate(above) if call.number < calls[0].number)
        if at + 1 < len(above) and above[at + 1].begun < calls[-1].ended:
            notes["child sessions not waited for"] += 1
        else:
            spawned[id] = (parent, at)
    return spawned


def _program(
    id: str,
    chains: Mapping[str, list[_Call]],
    spawned: Mapping[str, tuple[str, int]],
    children: Mapping[tuple[str, int], list[str]],
    start: float,
) -> ProgramPlan:
    calls = chains[id]
    segments: list[SegmentPlan] = []
    context = 0
    for index, call in enumerate(calls):
        usage = call.usages[0]
        spawns = tuple(children.get((id, index), ()))
        tool_s, tool = 0.0, None
        if index + 1 < len(calls):
            free = max([call.ended, *(chains[child][-1].ended for child in spawns)])
            tool_s, tool = _seconds(calls[index + 1].begun - free), call.caller.tool or "tool"
        kept = None if usage.prompt > context else min(usage.cached, usage.prompt - 1)
        new = usage.prompt - (context if kept is None else kept)
        segments.append(SegmentPlan(new, usage.output, tool_s, tool, spawns, kept))
        context = usage.prompt + usage.output
    parent = spawned.get(id)
    arrival = calls[0].begun - (chains[parent[0]][parent[1]].ended if parent else start)
    kind = next((call.caller.program_class for call in calls if call.caller.program_class), "recorded")
    most = longest(segment.output for segment in segments)
    return ProgramPlan(id, kind, _seconds(arrival), most, tuple(segments), (), parent and parent[0])


def _seconds(seconds: float) -> float:
    return round(max(0.0, seconds), 6)
