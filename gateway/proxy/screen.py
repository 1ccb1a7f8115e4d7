"""Blanks a provider's key where the provider echoes it: callers use keys that they must never see. Pure.

Some servers put what they were sent into their errors, debugging proxies into every answer. The blank is as long as
the key, so that lengths stay true; a key that is cut by two reads is found as well: bytes that may be its beginning are
held until the next ones come.
"""

from __future__ import annotations

import re

LEAST_BYTES = 8
"""Shorter keys are not looked for: they would be found in what is no key."""
_CREDENTIAL = re.compile(rb"(?:^|\n)(?:authorization: Bearer |x-api-key: |api-key: |x-goog-api-key: )([^\r\n]+)")


def key_in(block: bytes) -> bytes:
    """Return the key in a block of header lines, b"" if there is none worth looking for."""
    found = _CREDENTIAL.search(block)
    return found[1] if found is not None and len(found[1]) >= LEAST_BYTES else b""


def blanked(data: bytes, key: bytes) -> bytes:
    """Return `data`, which nothing follows that the key could go on in, without the key."""
    return data.replace(key, b"*" * len(key)) if key and key in data else data


class KeyScreen:
    """Passes one answer's bytes on; with an empty key, unchanged."""

    __slots__ = ("_blank", "_first", "_held", "_key")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._first = key[:1]
        self._blank = b"*" * len(key)
        self._held = b""

    def clean(self, piece: bytes, *, is_last: bool = False) -> bytes:
        """Return what may go on; b"" while all of it may be the beginning of the key."""
        key = self._key
        if not key:
            return piece
        if self._held:
            piece, self._held = self._held + piece, b""
        if key in piece:
            piece = piece.replace(key, self._blank)
        if is_last:
            return piece
        at = piece.find(self._first, max(0, len(piece) - len(key) + 1))
        while at >= 0:
            if key.startswith(piece[at:]):
                self._held = piece[at:]
                return piece[:at]
            at = piece.find(self._first, at + 1)
        return piece
