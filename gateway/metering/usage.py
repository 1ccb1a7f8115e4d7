"""What an answer says it used: tokens and the served model, out of JSON bodies of every dialect. Pure.

Sources: OpenAI chat completions, responses and embeddings (`usage`), Anthropic messages (`usage`), Gemini
generateContent (`usageMetadata`). Field meanings differ; `TokenUsage` is the common form: `input` counts every prompt
token, `cached_input` is the part of it that was read from a cache.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec

from gateway.balancing.outcome import TokenUsage

_MAX_COUNT = 2**31 - 1
"""Counts are stored as Postgres integers; a provider that claims more is not believed."""


class _Details(msgspec.Struct):
    cached_tokens: Any = 0


class _Usage(msgspec.Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None
    prompt_tokens_details: _Details | None = None
    input_tokens: Any = None
    output_tokens: Any = None
    input_tokens_details: _Details | None = None
    cache_creation_input_tokens: Any = None
    cache_read_input_tokens: Any = None


class _GeminiUsage(msgspec.Struct, rename="camel"):
    prompt_token_count: Any = None
    candidates_token_count: Any = None
    thoughts_token_count: Any = None
    tool_use_prompt_token_count: Any = None
    cached_content_token_count: Any = None


class Body(msgspec.Struct):
    """The few fields of an answer (or of one stream event) that metering reads; `raw` parts stay undecoded."""

    model: Any = None
    usage: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()
    """Responses API events carry the whole response object here."""
    message: msgspec.Raw = msgspec.Raw()
    """Anthropic's `message_start` carries the message here."""
    usage_metadata: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="usageMetadata")
    model_version: Any = msgspec.field(default=None, name="modelVersion")


_BODY = msgspec.json.Decoder(Body)
_USAGE = msgspec.json.Decoder(_Usage | None)
_GEMINI = msgspec.json.Decoder(_GeminiUsage | None)
_NAMED = re.compile(rb'"(usage|usageMetadata)"\s*:\s*\{')


class Reading(msgspec.Struct, frozen=True):
    """What one body or event told. The parts are None where it is silent, so that readings can be merged."""

    model: str | None = None
    input: int | None = None
    output: int | None = None
    cached_input: int | None = None

    @property
    def has_usage(self) -> bool:
        """Tell whether any token count was reported."""
        return self.input is not None or self.output is not None

    def over(self, earlier: Reading) -> Reading:
        """Merge: what this reading says wins, what it leaves out comes from `earlier`."""
        return Reading(
            model=self.model or earlier.model,
            input=self.input if self.input is not None else earlier.input,
            output=self.output if self.output is not None else earlier.output,
            cached_input=self.cached_input if self.cached_input is not None else earlier.cached_input,
        )

    def tokens(self) -> TokenUsage | None:
        """Return the counts as reported, None if there are none."""
        count, output, cached = self.input or 0, self.output, self.cached_input or 0
        if output is None and self.input is None:
            return None
        return TokenUsage(count, output or 0, cached if cached < count else count)


EMPTY = Reading()


_Count = Annotated[int, msgspec.Meta(ge=0, le=_MAX_COUNT)]


class _PlainDetails(msgspec.Struct):
    cached_tokens: _Count | None = 0


class _PlainUsage(msgspec.Struct):
    """A usage object whose counts are counts."""

    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _PlainDetails | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    input_tokens_details: _PlainDetails | None = None
    cache_creation_input_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None


class _Plain(msgspec.Struct):
    """The commonest answer, decoded in one go: no envelope around it, and its fields of the documented types."""

    model: str
    usage: _PlainUsage
    response: None = None
    message: None = None
    usage_metadata: None = msgspec.field(default=None, name="usageMetadata")


_PLAIN = msgspec.json.Decoder(_Plain)


def read_body(body: bytes) -> Reading:
    """Read a whole JSON answer, or the data of one event; anything that is not understood reads as silent."""
    try:
        plain = _PLAIN.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _read_any(body)
    return _plainly(plain)


def _read_any(body: bytes) -> Reading:
    try:
        parsed = _BODY.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return EMPTY
    for part in (bytes(parsed.response), bytes(parsed.message)):
        if part.startswith(b"{"):
            return read_body(part)
    model = parsed.model or parsed.model_version
    found = Reading(model=model if isinstance(model, str) else None)
    if parsed.usage_metadata:
        return read_gemini_usage(bytes(parsed.usage_metadata)).over(found)
    if parsed.usage:
        return read_usage(bytes(parsed.usage)).over(found)
    return found


def read_usage(raw: bytes) -> Reading:
    """Read an OpenAI or Anthropic usage object (they share no field name with different meanings but `input_tokens`).

    Anthropic's `input_tokens` leaves cached and cache-writing tokens out; its cache fields are added to it. OpenAI's
    counts include the cached ones, named in `*_tokens_details`.
    """
    try:
        usage = _USAGE.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return EMPTY
    if usage is None:
        return EMPTY
    if usage.prompt_tokens is not None or usage.completion_tokens is not None:
        details, into, out = usage.prompt_tokens_details, usage.prompt_tokens, usage.completion_tokens
    else:
        details, into, out = usage.input_tokens_details, usage.input_tokens, usage.output_tokens
    return _reading(
        None,
        _count(into),
        _count(out),
        cached=_count(details.cached_tokens) if details is not None else None,
        read=_count(usage.cache_read_input_tokens),
        written=_count(usage.cache_creation_input_tokens),
    )


def _plainly(plain: _Plain) -> Reading:
    usage = plain.usage
    into, out, details = usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details
    if into is None and out is None:
        into, out, details = usage.input_tokens, usage.output_tokens, usage.input_tokens_details
    return _reading(
        plain.model or None,
        into,
        out,
        cached=None if details is None else details.cached_tokens,
        read=usage.cache_read_input_tokens,
        written=usage.cache_creation_input_tokens,
    )


def _reading(
    model: str | None, into: int | None, out: int | None, *, cached: int | None, read: int | None, written: int | None
) -> Reading:
    """Put the counts together: `read` and `written` are Anthropic's, which `into` leaves out."""
    if into is not None and (read is not None or written is not None):
        into, cached = into + (read or 0) + (written or 0), read or 0
    return Reading(model, into, out, cached)


def read_gemini_usage(raw: bytes) -> Reading:
    """Read a `usageMetadata` object; thinking tokens are billed as output (ai.google.dev/gemini-api/docs/tokens)."""
    try:
        usage = _GEMINI.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return EMPTY
    if usage is None:
        return EMPTY
    prompt, tools = _count(usage.prompt_token_count), _count(usage.tool_use_prompt_token_count)
    answer, thoughts = _count(usage.candidates_token_count), _count(usage.thoughts_token_count)
    return Reading(
        input=None if prompt is None else prompt + (tools or 0),
        output=None if answer is None and thoughts is None else (answer or 0) + (thoughts or 0),
        cached_input=_count(usage.cached_content_token_count),
    )


def read_tail(tail: bytes) -> Reading:
    """Find the last usage object in the end of a body too large to be kept whole.

    Works because every provider writes the usage after the content, and no usage object holds a string with a brace.
    """
    last = None
    for last in _NAMED.finditer(tail):  # noqa: B007 - the last match is what is wanted
        pass
    if last is None:
        return EMPTY
    raw = _balanced(tail, last.end() - 1)
    if raw is None:
        return EMPTY
    return read_gemini_usage(raw) if last.group(1) == b"usageMetadata" else read_usage(raw)


def _balanced(text: bytes, start: int) -> bytes | None:
    depth = 0
    for brace in re.finditer(rb"[{}]", text[start:]):
        depth += 1 if brace.group() == b"{" else -1
        if depth == 0:
            return text[start : start + brace.end()]
    return None


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_COUNT:
        return None
    return value
