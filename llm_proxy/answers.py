"""What calls return: the providers' answers as typed values, with who gave them and after which attempts.

Providers add fields and leave fields out: unknown ones stay in `raw`, missing ones have defaults. Sources: OpenAI chat
completions, Anthropic messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from gateway.balancing.outcome import TokenUsage

Content = str | list[dict[str, Any]] | None


class Attempt(msgspec.Struct, frozen=True):
    """One try: the key's name, what became of it ("ok", "rate_limited", …), the HTTP status if any, seconds.

    `hedge`: it was made beside one that was late.
    """

    key: str
    outcome: str
    status: int | None
    total_s: float
    hedge: bool = False


class Served(msgspec.Struct, frozen=True):
    """Who answered: the key's name, its provider, the provider's id of the request, and every attempt in order.

    `fallback` is the model that stood in for the one that was asked for, None where that one served.
    """

    key: str
    provider: str
    request_id: str | None
    attempts: tuple[Attempt, ...]
    fallback: str | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the provider counted them; `cached_input_tokens` is the part of `input_tokens` read from a cache."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    @property
    def prompt_tokens(self) -> int:
        """`input_tokens` by OpenAI's name."""
        return self.input_tokens

    @property
    def completion_tokens(self) -> int:
        """`output_tokens` by OpenAI's name."""
        return self.output_tokens

    @classmethod
    def of(cls, tokens: TokenUsage | None) -> Usage | None:
        """Convert; None stays None."""
        return None if tokens is None else cls(tokens.input, tokens.output, tokens.cached_input)


class FunctionCall(msgspec.Struct, frozen=True):
    """What a model wants called; `arguments` is JSON text, in a stream a piece of it."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, frozen=True):
    """One tool call; in a stream `index` tells which one a piece belongs to."""

    id: str | None = None
    type: str | None = None
    function: FunctionCall = FunctionCall()
    index: int | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    """A message, or in a stream a piece of one (a delta). `text` is its content without anything but text."""

    role: str | None = None
    content: Content = None
    tool_calls: tuple[ToolCall, ...] | None = None
    refusal: str | None = None

    @property
    def text(self) -> str:
        """The text, "" when there is none."""
        return _text_of(self.content)


class Choice(msgspec.Struct, frozen=True):
    """One of the answers that were asked for."""

    index: int = 0
    message: ChatMessage = ChatMessage()
    finish_reason: str | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    """A piece of one of the answers."""

    index: int = 0
    delta: ChatMessage = ChatMessage()
    finish_reason: str | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of the chat completions API. `raw` is all of it as decoded; `usage` None: the provider said nothing."""

    served: Served
    raw: Mapping[str, Any]
    id: str = ""
    model: str = ""
    created: int | float | None = None
    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].message.text if self.choices else ""

    @property
    def key(self) -> str:
        """The name of the key that answered."""
        return self.served.key

    @property
    def provider(self) -> str:
        """The provider of that key."""
        return self.served.provider

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every attempt, the answering one last."""
        return self.served.attempts


class CompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed chat completion; the last may carry `usage` and no choices."""

    raw: Mapping[str, Any]
    id: str = ""
    model: str = ""
    choices: tuple[ChunkChoice, ...] = ()
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The first choice's piece of text, "" when the event carries none."""
        return self.choices[0].delta.text if self.choices else ""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of Anthropic's messages API; `content` holds its blocks as decoded."""

    served: Served
    raw: Mapping[str, Any]
    id: str = ""
    model: str = ""
    role: str = "assistant"
    content: tuple[Mapping[str, Any], ...] = ()
    stop_reason: str | None = None
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The text blocks, joined."""
        return "".join(str(block.get("text", "")) for block in self.content if block.get("type") == "text")

    @property
    def key(self) -> str:
        """The name of the key that answered."""
        return self.served.key

    @property
    def provider(self) -> str:
        """The provider of that key."""
        return self.served.provider

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every attempt, the answering one last."""
        return self.served.attempts


class MessageEvent(msgspec.Struct, frozen=True):
    """One event of a streamed message, by Anthropic's name for it; `raw` is its data as decoded."""

    type: str
    raw: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The event's piece of text, "" when it carries none."""
        delta = self.raw.get("delta")
        return str(delta.get("text", "")) if isinstance(delta, Mapping) and self.type == "content_block_delta" else ""


class _Chat(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    created: int | float | None = None
    choices: tuple[Choice, ...] | None = None


class _Chunk(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    choices: tuple[ChunkChoice, ...] | None = None


class _Message(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    role: str | None = None
    content: tuple[dict[str, Any], ...] | None = None
    stop_reason: str | None = None


T = TypeVar("T", _Chat, _Chunk, _Message)


class NotUnderstood(ValueError):
    """The body is not what this API answers; the text says where."""


def _read(body: bytes, shape: type[T]) -> tuple[T, Mapping[str, Any]]:
    try:
        raw = msgspec.json.decode(body, type=dict[str, Any])
        return msgspec.convert(raw, shape), raw
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotUnderstood(str(error)) from None


def read_completion(body: bytes, served: Served, usage: TokenUsage | None) -> Completion:
    """Read a whole chat completion, or raise NotUnderstood."""
    found, raw = _read(body, _Chat)
    return Completion(
        served=served,
        raw=raw,
        id=found.id or "",
        model=found.model or "",
        created=found.created,
        choices=found.choices or (),
        usage=Usage.of(usage),
    )


def read_chunk(name: str, data: bytes, usage: TokenUsage | None) -> CompletionChunk:  # noqa: ARG001 - as read_event
    """Read one event of a streamed chat completion, or raise NotUnderstood."""
    found, raw = _read(data, _Chunk)
    return CompletionChunk(
        raw=raw, id=found.id or "", model=found.model or "", choices=found.choices or (), usage=Usage.of(usage)
    )


def read_message(body: bytes, served: Served, usage: TokenUsage | None) -> Message:
    """Read a whole message, or raise NotUnderstood."""
    found, raw = _read(body, _Message)
    return Message(
        served=served,
        raw=raw,
        id=found.id or "",
        model=found.model or "",
        role=found.role or "assistant",
        content=found.content or (),
        stop_reason=found.stop_reason,
        usage=Usage.of(usage),
    )


def read_event(name: str, data: bytes, usage: TokenUsage | None) -> MessageEvent:  # noqa: ARG001 - as read_chunk
    """Read one event of a streamed message, or raise NotUnderstood."""
    try:
        raw = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotUnderstood(str(error)) from None
    return MessageEvent(str(raw.get("type", name)), raw)


def _text_of(content: Content) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(str(part["text"]) for part in content if isinstance(part.get("text"), str))
