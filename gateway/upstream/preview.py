"""The beginning of an answer, read before the caller gets any of it: an error there can still be failed over.

Providers answer 200 and then say `overloaded` in the first event; OpenAI-compatible ones also answer 200 with a JSON
error object, after a while of white space that kept the connection alive (OpenRouter errors page). `judge` and
`judge_json` are pure: bytes so far in, verdict out. Source of the
format: WHATWG HTML, section 9.2 (server-sent events).
"""

from __future__ import annotations

import re

from gateway.balancing.outcome import OutcomeKind
from gateway.upstream.classify import classify_event

PREVIEW_BYTES = 16 * 1024
PREVIEW_S = 5.0
"""A stream that only says comments and pings is handed over after this, so that the caller's keep-alive is not ours."""

_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_ERROR_MEMBER = re.compile(rb'"error"\s*+(?::\s*+(?:[{"]|\Z)|\Z)')
"""An error that is no null, or cut where that cannot be seen yet."""
_BEGINNING = len(b'{"error":')
_PRELUDE = frozenset({b"ping", b"message_start"})
"""Anthropic's events before any content; an overload is still possible after them."""


def judge(buffer: bytes) -> OutcomeKind | None:
    """Tell OK (content, or too long to be an error), the class of an error event, or None: not decided yet."""
    start = 0
    while (end := _EVENT_END.search(buffer, start)) is not None:
        verdict = _judge_event(buffer[start : end.start()])
        if verdict is not None:
            return verdict
        start = end.end()
    return OutcomeKind.OK if len(buffer) >= PREVIEW_BYTES else None


def judge_json(buffer: bytes, *, ended: bool) -> OutcomeKind | None:
    """Tell OK, the class of the error that the whole body is, or None: not decided yet. Other media types are OK.

    Only what can be seen in the first `PREVIEW_BYTES` is looked at: errors are short.
    """
    if buffer.find(b'"error"', 0, PREVIEW_BYTES) < 0:
        may_begin_so = not ended and len(buffer) < PREVIEW_BYTES and len(buffer.lstrip()) < _BEGINNING
        return None if may_begin_so else OutcomeKind.OK
    if _ERROR_MEMBER.search(buffer, 0, PREVIEW_BYTES) is None or buffer.lstrip()[:1] != b"{":
        return OutcomeKind.OK
    if not ended:
        return None if len(buffer) < PREVIEW_BYTES else OutcomeKind.OK
    return classify_event(buffer)


def _judge_event(event: bytes) -> OutcomeKind | None:
    name, data = b"", b""
    for line in event.splitlines():
        field, _, value = line.partition(b":")
        if field == b"data":
            data += value.removeprefix(b" ")
        elif field == b"event":
            name = value.strip()
    if not data or name in _PRELUDE:
        return None
    if name == b"error" or b'"error"' in data:
        verdict = classify_event(data)
        return OutcomeKind.SERVER_ERROR if name == b"error" and verdict is OutcomeKind.OK else verdict
    return OutcomeKind.OK
