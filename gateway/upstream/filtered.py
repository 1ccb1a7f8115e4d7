"""Whether an answer with a good status was ended by the provider's content filter, before anybody has seen any of it.

`is_filtered` is pure: bytes so far in, verdict out. A whole body may hold text all the same; a stream is only looked at
up to its first content, since that is relayed as it comes.

Sources: platform.openai.com/docs/api-reference (chat `finish_reason`, responses `incomplete_details`);
docs.anthropic.com "Handling stop reasons" (`refusal`); ai.google.dev/api/generate-content (block and finish reasons).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from gateway.upstream.preview import PREVIEW_S

MAX_BODY_BYTES = 256 * 1024
"""Longer bodies and longer beginnings without content are relayed as they are."""

_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_GEMINI = frozenset({"SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "IMAGE_SAFETY"})
_SIGNS = re.compile(rb"content_filter|refusal|blockReason|SAFETY|PROHIBITED_CONTENT|BLOCKLIST|SPII")
_STILL_EMPTY = frozenset({
    "ping", "message_start", "content_block_start", "response.created", "response.queued", "response.in_progress",
    "response.output_item.added", "response.content_part.added",
})  # fmt: skip


class Peekable(Protocol):
    """What is asked of `dispatch.Answer`."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Lower-case names, in order."""

    streaming: bool

    async def peek_until(self, decide: Callable[[bytes, bool], bool | None], within_s: float) -> bool:
        """Read on until `decide` is sure; what was read is left in place."""


async def was_filtered(answer: Peekable, within_s: float = PREVIEW_S) -> bool:
    """Tell whether a good answer was ended by the filter; waits so long at most for what decides it."""
    if not answer.streaming and (b"content-type", b"application/json") not in [
        (name, value[:16].lower()) for name, value in answer.headers
    ]:
        return False
    return await answer.peek_until(partial(is_filtered, is_stream=answer.streaming), within_s)


def is_filtered(body: bytes, ended: bool, *, is_stream: bool) -> bool | None:
    """Tell whether the filter ended the answer; None: more has to be read. Never raises."""
    if is_stream:
        verdict = _of_events(body)
        return (False if ended or len(body) >= MAX_BODY_BYTES else None) if verdict is None else verdict
    if not ended:
        return None if len(body) < MAX_BODY_BYTES else False
    return _SIGNS.search(body) is not None and _of_document(_decoded(body)) is True


def _of_events(buffer: bytes) -> bool | None:
    start = 0
    while (end := _EVENT_END.search(buffer, start)) is not None:
        lines = buffer[start : end.start()].splitlines()
        start = end.end()
        data = b"".join(line[5:].strip() for line in lines if line.startswith(b"data:"))
        if data:
            verdict = _of_document(_decoded(data))
            if verdict is not None:
                return verdict
    return None


def _decoded(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _of_document(document: Any) -> bool | None:
    """Tell of one body or event: ended by a filter, anything else, or None: neither content nor an end."""
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    if not isinstance(document, dict):
        return False
    choices, candidates = document.get("choices"), document.get("candidates")
    if isinstance(choices, list):
        return _of_all([_of_choice(each) for each in choices])
    feedback = document.get("promptFeedback")
    if isinstance(feedback, dict) and feedback.get("blockReason"):
        return True
    if isinstance(candidates, list):
        return _of_all([_of_candidate(each) for each in candidates])
    kind = document.get("type")
    if kind in _STILL_EMPTY:
        return None
    delta = document.get("delta")
    ended = delta if kind == "message_delta" and isinstance(delta, dict) else document
    if ended.get("stop_reason") == "refusal":
        return True
    response = document.get("response")
    details = (response if isinstance(response, dict) else document).get("incomplete_details")
    return isinstance(details, dict) and details.get("reason") == "content_filter"


def _of_all(verdicts: list[bool | None]) -> bool | None:
    """Several are filtered when each is; none at all, as in an event about the prompt, says nothing yet."""
    if all(verdict is True for verdict in verdicts):
        return True if verdicts else None
    return None if all(verdict is None for verdict in verdicts) else False


def _of_choice(choice: Any) -> bool | None:
    if not isinstance(choice, dict):
        return False
    if choice.get("finish_reason") is not None:
        return bool(choice["finish_reason"] == "content_filter")
    delta = choice.get("delta")
    shown = {name for name, value in delta.items() if value} if isinstance(delta, dict) else {"text"}
    return None if shown <= {"role"} else False


def _of_candidate(candidate: Any) -> bool | None:
    if not isinstance(candidate, dict):
        return False
    if candidate.get("finishReason") is not None:
        return candidate["finishReason"] in _GEMINI
    content = candidate.get("content")
    return False if isinstance(content, dict) and content.get("parts") else None
