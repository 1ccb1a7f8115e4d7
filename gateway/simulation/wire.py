"""What a dialect hands to the server: a whole body, or the events of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from gateway.balancing.outcome import TokenUsage

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"


class Dialect(StrEnum):
    """The API faces that the simulated provider speaks."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GEMINI = "gemini"


@dataclass(frozen=True, slots=True)
class Call:
    """One understood request. `ident` is a random hex word for ids, `created` Unix seconds.

    `cached_tokens` is the part of the prompt found in the cache, `output_tokens` a length asked for by a test.
    """

    request: Mapping[str, Any]
    model: str
    ident: str
    created: int
    cached_tokens: int = 0
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete response body."""

    body: bytes
    usage: TokenUsage = field(default_factory=TokenUsage)
    status: int = 200
    content_type: str = JSON


@dataclass(frozen=True, slots=True)
class Stream:
    """Server-sent events, each ready for the wire; `content_at` is the index of the first that carries content.

    `error` is the event this dialect sends when it fails in mid-stream.
    """

    events: tuple[bytes, ...]
    usage: TokenUsage
    content_at: int
    error: bytes


class BadRequest(Exception):
    """The request does not fit the API; `param` names the offending field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


def json_reply(value: Any, usage: TokenUsage | None = None) -> Reply:
    """Encode a JSON answer."""
    return Reply(msgspec.json.encode(value), usage or TokenUsage())


def event(value: Any, name: str | None = None) -> bytes:
    """Encode one server-sent event."""
    prefix = b"" if name is None else b"event: " + name.encode() + b"\n"
    return prefix + b"data: " + msgspec.json.encode(value) + b"\n\n"


def refusal(dialect: Dialect, status: int, message: str, *, code: str | None = None, param: str | None = None) -> Reply:
    """Write an error in the exact shape of its dialect."""
    if dialect is Dialect.ANTHROPIC:
        shape: Any = {"type": "error", "error": {"type": _ANTHROPIC_TYPES.get(status, "api_error"), "message": message}}
    elif dialect is Dialect.GEMINI:
        shape = {"error": {"code": status, "message": message, "status": _GEMINI_STATUS.get(status, "INTERNAL")}}
    else:
        kind = _OPENAI_TYPES.get(status, "server_error")
        shape = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return Reply(msgspec.json.encode(shape), status=status)


_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "invalid_request_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "requests",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_GEMINI_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
