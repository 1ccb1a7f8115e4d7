"""A request head that is known by its bytes: sent again, but for the length that it tells, it is not parsed again.

Who keeps a connection mostly sends one head, request after request. What a parser makes of it follows from its bytes
alone, as long as it stands between two messages. So nothing is known but the very bytes that were parsed, and only a
read that is one whole request with such a head is recognised: everything else is the parser's, as it always was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.proxy.channel import HeaderList

_MOST_DIGITS: Final = 15
"""More than any read holds."""


class KnownHead:
    """The bytes of a head around the digits of its `content-length`, and its target."""

    __slots__ = ("_after", "_before", "query", "raw_path")

    def __init__(self, before: bytes, after: bytes, raw_path: bytes, query: bytes) -> None:
        self._before = before
        self._after = after
        self.raw_path = raw_path
        self.query = query

    def body_in(self, data: bytes) -> bytes | None:
        """Return the body when `data` is this head, with any length, and as many bytes; None for anything else."""
        before, after = self._before, self._after
        if not data.startswith(before):
            return None
        at = len(before)
        end = data.find(b"\r", at, at + _MOST_DIGITS + 1)
        digits = data[at:end]
        if end < 0 or not digits.isdigit() or not data.startswith(after, end):
            return None
        body = data[end + len(after) :]
        return body if len(body) == int(digits) else None


def known_head(
    data: bytes, url: bytes, lines: HeaderList, length_at: int, *, raw_path: bytes, query: bytes
) -> KnownHead | None:
    """Return the head of a POST in HTTP/1.1 that was read as `lines`; None when `data` does not begin with just these.

    `length_at` is the place of `content-length` among them.
    """
    name, length = lines[length_at]
    before = b"POST %b HTTP/1.1\r\n%b%b: " % (url, _written(lines[:length_at]), name)
    after = b"\r\n%b\r\n" % _written(lines[length_at + 1 :])
    return KnownHead(before, after, raw_path, query) if data.startswith(before + length + after) else None


def _written(lines: HeaderList) -> bytes:
    return b"".join(b"%b: %b\r\n" % line for line in lines)
