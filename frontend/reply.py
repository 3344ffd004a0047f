"""What does a model reply? A chat completion of an OpenAI-compatible server, whole or in pieces."""

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import AliasChoices, BaseModel, Field, ValidationError

from astraea_sglang.errors import ServerError


@dataclass(frozen=True, slots=True)
class Call:
    """Which tool does the model want to call? `arguments` is JSON text, as the model wrote it."""

    id: str
    tool: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What did a reply take? In tokens; `cached_tokens` of the prompt's, None where the server does not tell."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What did the model say? Its text, the tools it wants to call, and why it stopped, in OpenAI's words."""

    text: str
    calls: tuple[Call, ...] = ()
    usage: Usage | None = None
    finish: str | None = None

    def message(self) -> dict[str, Any]:
        """How does it stand in the next request? As an assistant's message."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.tool, "arguments": _object(c.arguments)}}
                for c in self.calls
            ]
        return message


class _Function(BaseModel):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(BaseModel):
    index: int | None = None
    id: str | None = None
    function: _Function


class _Message(BaseModel):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(BaseModel):
    index: int = 0
    message: _Message = Field(validation_alias=AliasChoices("message", "delta"))
    finish_reason: str | None = None


class _Details(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Answer(BaseModel):
    """A chat completion, or one chunk of it."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class Draft:
    """What has come of a reply so far? One chat completion, or chunks of it."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.calls: dict[int, _ToolCall] = {}
        self.usage: Usage | None = None
        self.finish: str | None = None

    def add(self, data: bytes) -> str:
        """What text came with this? Raises ServerError for what is no chat completion, and for the server's errors."""
        try:
            answer = _Answer.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "all of it"
            raise ServerError(
                f"no chat completion, for {where}: {first['msg']}: {data[:200].decode(errors='replace')}"
            ) from None
        if answer.error is not None:
            raise ServerError(f"the server broke off its reply: {words(data)}")
        if usage := answer.usage:
            details = usage.prompt_tokens_details
            self.usage = Usage(usage.prompt_tokens, usage.completion_tokens, details and details.cached_tokens)
        text = ""
        for choice in answer.choices:
            if choice.index == 0:
                text += choice.message.content or ""
                self.finish = choice.finish_reason or self.finish
                for place, call in enumerate(choice.message.tool_calls or ()):
                    self._call(place if call.index is None else call.index, call)
        self.text.append(text)
        return text

    def reply(self) -> Reply:
        """What is the whole of it?"""
        calls = (
            Call(call.id or f"call_{place}", call.function.name or "", call.function.arguments or "")
            for place, call in sorted(self.calls.items())
        )
        return Reply("".join(self.text), tuple(calls), self.usage, self.finish)

    def _call(self, place: int, piece: _ToolCall) -> None:
        known = self.calls.setdefault(place, _ToolCall(function=_Function(arguments="")))
        known.id = known.id or piece.id
        known.function.name = known.function.name or piece.function.name
        known.function.arguments = (known.function.arguments or "") + (piece.function.arguments or "")


async def server_sent(response: httpx.Response) -> AsyncGenerator[bytes]:
    """What data do server-sent events bring? Not by httpx's lines: those end at U+2028, too, which JSON may hold."""
    rest = b""
    async for block in response.aiter_bytes():
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                yield data


def words(body: bytes) -> str:
    """What does a server say is wrong? OpenAI, SGLang and FastAPI each have a place for it."""
    text = body.decode(errors="replace")
    try:
        told = json.loads(text)
    except ValueError:
        return text[:500]
    told = told.get("error", told) if isinstance(told, dict) else told
    return str(
        next((told[key] for key in ("message", "detail") if key in told), told) if isinstance(told, dict) else told
    )


def _object(arguments: str) -> str:
    """Arguments as SGLang takes them in a history: the text of a JSON object, whatever the model wrote."""
    try:
        whole = isinstance(json.loads(arguments or "{}"), dict)
    except ValueError:
        whole = False
    return (arguments or "{}") if whole else json.dumps({"malformed": arguments})
