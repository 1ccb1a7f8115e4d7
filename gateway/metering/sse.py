"""Taps a relayed answer for its usage without parsing it: keeps the first and the last bytes, reads them at the end.

Pure. A chunk costs one append, a few kilobytes one `count`; only a handful of events is ever decoded.
"""

from __future__ import annotations

import re
from dataclasses import replace

from gateway.balancing.outcome import TokenUsage
from gateway.metering.usage import EMPTY, read_body, read_tail
from gateway.metering.usage_shapes import Reading

_MARK = b"data:"
HEAD_BYTES = 2048
"""Enough for the first event: Anthropic's `message_start` (input tokens) and the model of every dialect."""
TAIL_BYTES = 32768
"""A whole JSON answer up to this size is decoded as such."""
STREAM_TAIL_BYTES = 4096
"""Enough of a stream for the usage in its last events: thousands of streams are open for minutes."""


_TRUNCATED = re.compile(
    rb'"(?:finish_reason|stop_reason|finishReason|reason)"\s*:\s*"(?:length|max_tokens|MAX_TOKENS|max_output_tokens)"'
)
"""OpenAI, Anthropic, Gemini, OpenAI's responses. Quotes inside of text are escaped, so no text can say it."""


class AnswerTap:
    """Watches one answer. `feed` every chunk, in order; then ask once for `result`.

    Memory stays under HEAD_BYTES + 1.5 TAIL_BYTES + one chunk, whatever the length of the answer.
    """

    __slots__ = ("_bound", "_chunks", "_counted", "_dropped", "_events", "_head", "_kept", "_most", "is_stream")

    def __init__(self, *, is_stream: bool) -> None:
        self.is_stream = is_stream
        self._bound = STREAM_TAIL_BYTES if is_stream else TAIL_BYTES
        self._most = self._bound * 3 // 2
        self._chunks: list[bytes] = []
        self._kept = self._dropped = 0
        self._head = b""
        """The first bytes, as soon as they are among the chunks no more."""
        self._events = self._counted = 0
        """Events among all that was dropped and the first so many bytes of the chunks."""

    def feed(self, chunk: bytes) -> None:
        """Note one chunk of the answer's body, as relayed."""
        self._chunks.append(chunk)
        self._kept += len(chunk)
        if self._kept > self._most:
            self._shorten()

    def _shorten(self) -> None:
        """Keep the last bytes alone: now and then, since dropping chunk by chunk costs more than all the rest."""
        if len(self._chunks) < 2:
            return
        kept = b"".join(self._chunks)
        if not self._dropped:
            self._head = kept[:HEAD_BYTES]
        if self.is_stream:
            self._events += self._uncounted(kept)
        self._chunks = [kept[-self._bound :]]
        self._dropped += len(kept) - self._bound
        self._kept = self._counted = self._bound

    def _uncounted(self, kept: bytes) -> int:
        """Count the events whose mark does not lie wholly in what was counted."""
        return kept.count(_MARK, max(0, self._counted - len(_MARK) + 1))

    @property
    def size(self) -> int:
        """How many bytes came."""
        return self._dropped + self._kept

    @property
    def events(self) -> int:
        """How many events of a stream came."""
        return self._events + self._uncounted(b"".join(self._chunks)) if self.is_stream else 0

    @property
    def at_event_boundary(self) -> bool:
        """Tell whether the stream so far ends between two events, where an event of ours may be added."""
        return not self._chunks or self._chunks[-1].endswith((b"\n\n", b"\r\n\r\n"))

    @property
    def is_truncated(self) -> bool:
        """See `says_truncated`."""
        return says_truncated(b"".join(self._chunks)) or says_truncated(self._head)

    def reading(self) -> Reading:
        """Return what the answer said of itself."""
        chunks = self._chunks
        tail = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if self.is_stream:
            return read_stream(self._head if self._dropped else tail[:HEAD_BYTES], tail)
        if not self._dropped:
            return read_body(tail)
        head = read_stream(self._head, b"") if self._head.lstrip()[:1] != b"{" else _model_of_head(self._head)
        return read_tail(tail).over(head)

    def result(self, *, est_input_tokens: int) -> tuple[TokenUsage, str | None]:
        """Return (usage, served model). Silent answers are estimated: the ask's input, one output token an event.

        So is the output of one that ended before its provider had counted it.
        """
        reading = self.reading()
        usage = reading.tokens()
        if usage is None:
            # A stream's first and last events carry no text; a JSON answer of unknown kind is counted by its bytes.
            output = max(self.events - 2, 0) if self.is_stream else 0
            usage = TokenUsage(input=est_input_tokens if self.size else 0, output=output, reported=False)
        elif reading.is_opening and self.is_stream:
            usage = replace(usage, output=max(usage.output, self.events - 2), reported=False)
        return usage, reading.model


def read_whole(body: bytes, *, est_input_tokens: int) -> tuple[TokenUsage, str | None]:
    """Return what an `AnswerTap` would that was fed `body` at once, which is no stream."""
    reading = read_body(body)
    usage = reading.tokens()
    return TokenUsage(est_input_tokens, reported=False) if usage is None else usage, reading.model


def says_truncated(body: bytes) -> bool:
    """Tell whether an answer says that it ended at its limit of output tokens."""
    return _TRUNCATED.search(body) is not None


def read_stream(head: bytes, tail: bytes) -> Reading:
    """Merge what the first event and the last events of a server-sent stream say; later counts win.

    `head` and `tail` may overlap and may cut events in two: a cut event reads as silent.
    """
    first = EMPTY
    # Most events say neither, and are not even looked at one by one where none does.
    if b'"model' in head or b'"usage' in head:
        for line in head.splitlines():
            if line.startswith(b"data:") and (b'"model' in line or b'"usage' in line):
                found = read_body(line[5:].strip())
                if found.model or found.has_usage:
                    first = found
                    break
    if b'"usage' not in tail:
        return first
    for line in reversed(tail.splitlines()):
        if line.startswith(b"data:") and b'"usage' in line:
            last = read_body(line[5:].strip())
            if last.has_usage:
                return last.over(first)
    return read_tail(tail).over(first)


def _model_of_head(head: bytes) -> Reading:
    """Read the model out of the beginning of a large JSON answer by closing it after its first scalar fields."""
    at = head.find(b'"model"')
    if at < 0:
        return EMPTY
    start = head.find(b'"', head.find(b":", at))
    end = head.find(b'"', start + 1)
    if start < 0 or end < 0:
        return EMPTY
    return read_body(b'{"model":' + head[start : end + 1] + b"}")
