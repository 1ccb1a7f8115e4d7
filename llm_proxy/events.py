"""Reads an answer in passing: server-sent events as they complete, and the usage they report. Pure.

Sources: WHATWG HTML section 9.2 (server-sent events); OpenAI and Anthropic `usage` objects, Gemini `usageMetadata`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.balancing.outcome import TokenUsage

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""No provider's event comes near this; a stream that never ends an event must not fill the memory."""
MAX_BODY_BYTES = 4 * 1024 * 1024
"""A JSON body longer than this (images, embeddings) is not read for usage."""

_BLANK = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_EVENT_MARKS = (b'"usage', b'"usageMetadata')


class EventTooLong(ValueError):
    """An event exceeds `MAX_EVENT_BYTES`."""


class EventReader:
    """Takes bytes in any pieces and gives back whole events as (name, data); comments and pings have no data."""

    __slots__ = ("_buffer", "_searched")

    def __init__(self) -> None:
        self._buffer = b""
        self._searched = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield the events that `chunk` completes."""
        buffer = self._buffer + chunk
        start, search = 0, self._searched
        while (end := _BLANK.search(buffer, search)) is not None:
            event = _parse(buffer[start : end.start()])
            start = search = end.end()
            if event is not None:
                yield event
        self._buffer = buffer[start:]
        self._searched = max(0, len(self._buffer) - 3)
        if len(self._buffer) > MAX_EVENT_BYTES:
            raise EventTooLong(f"an event is longer than {MAX_EVENT_BYTES} bytes")

    def rest(self) -> tuple[str, bytes] | None:
        """Return the last event of a stream whose final blank line is missing."""
        buffer, self._buffer = self._buffer, b""
        return _parse(buffer)


def _parse(event: bytes) -> tuple[str, bytes] | None:
    name = ""
    data: list[bytes] = []
    for line in event.splitlines():
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.strip().decode("utf-8", "replace")
    return (name, b"\n".join(data)) if data else None


def is_last(name: str, data: bytes) -> bool:
    """Tell whether this event is a stream's last, by OpenAI's or Anthropic's word for it."""
    return data == b"[DONE]" or name == "message_stop"


class UsageReader:
    """Remembers what an answer reports; fed with each event's data, or once with a whole JSON body."""

    __slots__ = ("_begun", "_cached", "_input", "_output", "events")

    def __init__(self) -> None:
        self.events = 0
        self._input: int | None = None
        self._output: int | None = None
        self._cached = 0
        self._begun = False

    def feed(self, data: bytes) -> TokenUsage | None:
        """Take one JSON text in; return the counts if it reported any."""
        self.events += 1
        if not any(mark in data for mark in _EVENT_MARKS):
            return None
        try:
            body = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        found = _usage_in(body)
        if found is None:
            return None
        self._take(found)
        # Anthropic tells the input before the answer, and of its output no more than the beginning.
        self._begun = body.get("type") == "message_start"
        return self.reported

    @property
    def reported(self) -> TokenUsage | None:
        """The counts so far, later ones winning; None when there were none."""
        if self._input is None and self._output is None:
            return None
        into = self._input or 0
        return TokenUsage(into, self._output or 0, min(self._cached, into))

    def settled(self, est_input_tokens: int) -> TokenUsage:
        """Return what to settle with: an output that was not told is estimated, one token for each event."""
        reported, events = self.reported, max(0, self.events - 2)
        if reported is None:
            return TokenUsage(est_input_tokens, events, reported=False)
        if self._begun:
            return TokenUsage(reported.input, max(reported.output, events), reported.cached_input, reported=False)
        return reported

    def _take(self, usage: dict[str, Any]) -> None:
        def count(*names: str) -> int | None:
            for name in names:
                value = usage.get(name)
                if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
                    return value
            return None

        into = count("prompt_tokens", "input_tokens", "promptTokenCount")
        output = count("completion_tokens", "output_tokens", "candidatesTokenCount")
        thoughts, total = count("thoughtsTokenCount"), count("total_tokens")
        read, written = count("cache_read_input_tokens"), count("cache_creation_input_tokens")
        cached = count("cachedContentTokenCount")
        for details in (usage.get("prompt_tokens_details"), usage.get("input_tokens_details")):
            if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
                cached = details["cached_tokens"]
        if into is not None and (read is not None or written is not None):
            # Anthropic's `input_tokens` leaves out what was read from the cache or written to it.
            into, cached = into + (read or 0) + (written or 0), read or 0
        if into is not None and total and total > into + (output or 0):
            # xAI, and Gemini's OpenAI face, leave what was thought out of the completion and charge for it.
            output = total - into
        if into is not None:
            into += count("toolUsePromptTokenCount") or 0
        if into is not None:
            self._input, self._cached = into, max(0, cached or 0)
        if output is not None or thoughts is not None:
            self._output = (output or 0) + (thoughts or 0)


def _usage_in(body: object) -> dict[str, Any] | None:
    if not isinstance(body, dict):
        return None
    for holder in (body, body.get("message"), body.get("response")):
        if isinstance(holder, dict):
            for name in ("usage", "usageMetadata"):
                if isinstance(holder.get(name), dict):
                    found: dict[str, Any] = holder[name]
                    return found
    return None
