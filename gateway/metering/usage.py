"""What an answer says it used: tokens and the served model, out of JSON bodies of every dialect. Pure.

Sources: OpenAI chat completions, responses and embeddings (`usage`), Anthropic messages (`usage`), Gemini
generateContent (`usageMetadata`). Field meanings differ; `TokenUsage` is the common form: `input` counts every prompt
token, `cached_input` is the part of it that was read from a cache. Where `total_tokens` is more than both together the
rest is output: xAI and Gemini's OpenAI face leave what was thought out of `completion_tokens`, and charge for it.
"""

from __future__ import annotations

import re

import msgspec

from gateway.metering.usage_shapes import MAX_COUNT, Body, GeminiUsage, Plain, Reading, Usage

_BODY = msgspec.json.Decoder(Body)
_BODIES = msgspec.json.Decoder(list[Body])
_USAGE = msgspec.json.Decoder(Usage | None)
_GEMINI = msgspec.json.Decoder(GeminiUsage | None)
_NAMED = re.compile(rb'"(usage|usageMetadata)"\s*:\s*\{')


EMPTY = Reading()


_PLAIN = msgspec.json.Decoder(Plain)


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
        return _read_list(body) if body[:1] == b"[" else EMPTY
    response, message = bytes(parsed.response), bytes(parsed.message)
    if response.startswith(b"{") and (inner := read_body(response)) != EMPTY:
        return inner
    if message.startswith(b"{") and (inner := read_body(message)) != EMPTY:
        return msgspec.structs.replace(inner, is_opening=True)
    return _told_by(parsed)


def _told_by(parsed: Body) -> Reading:
    model = parsed.model or parsed.model_version
    found = Reading(model=model if isinstance(model, str) else None)
    if parsed.usage_metadata:
        return read_gemini_usage(bytes(parsed.usage_metadata)).over(found)
    if parsed.usage:
        return read_usage(bytes(parsed.usage)).over(found)
    return found


def _read_list(body: bytes) -> Reading:
    """Read what Gemini streams to callers that do not ask for events: its answers in a list; later ones win."""
    try:
        answers = _BODIES.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return EMPTY
    found = EMPTY
    for answer in answers:
        found = _told_by(answer).over(found)
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
    told = details if isinstance(details, dict) else {}
    writes = usage.cache_creation if isinstance(usage.cache_creation, dict) else {}
    return _reading(
        None,
        _count(into),
        _count(out),
        total=_count(usage.total_tokens),
        cached=_count(told.get("cached_tokens", 0)) if isinstance(details, dict) else None,
        put=_count(told.get("cache_write_tokens")),
        read=_count(usage.cache_read_input_tokens),
        written=_count(usage.cache_creation_input_tokens),
        written_1h=_count(writes.get("ephemeral_1h_input_tokens")),
    )


def _plainly(plain: Plain) -> Reading:
    usage = plain.usage
    into, out, details = usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details
    if into is None and out is None:
        into, out, details = usage.input_tokens, usage.output_tokens, usage.input_tokens_details
    writes = usage.cache_creation
    return _reading(
        plain.model or None,
        into,
        out,
        total=usage.total_tokens,
        cached=None if details is None else details.cached_tokens,
        put=None if details is None else details.cache_write_tokens,
        read=usage.cache_read_input_tokens,
        written=usage.cache_creation_input_tokens,
        written_1h=None if writes is None else writes.ephemeral_1h_input_tokens,
    )


def _reading(
    model: str | None,
    into: int | None,
    out: int | None,
    *,
    total: int | None,
    cached: int | None,
    put: int | None,
    read: int | None,
    written: int | None,
    written_1h: int | None,
) -> Reading:
    """Put the counts together: `read` and `written` are Anthropic's, which `into` leaves out; `put` is part of it."""
    if into is not None and (read is not None or written is not None):
        into, cached = _sum(into, read, written), read or 0
    if total and into is not None and total > into + (out or 0):
        out = total - into
    return Reading(model, into, out, cached, put if written is None else written, written_1h)


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
        input=None if prompt is None else _sum(prompt, tools),
        output=None if answer is None and thoughts is None else _sum(answer, thoughts),
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


def _sum(*counts: int | None) -> int | None:
    """Add counts up; None for a sum that is none itself: each may be as large as one may be."""
    return _count(sum(count or 0 for count in counts))


def _count(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # some servers know no other numbers
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
        return None
    return value
