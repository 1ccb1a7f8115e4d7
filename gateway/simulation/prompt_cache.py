"""A provider's prompt cache: prefixes of 128 tokens that an organisation has sent before, at least 1,024 tokens."""

from __future__ import annotations

import zlib
from collections import OrderedDict

_BLOCK_TOKENS = 128
_BLOCK_CHARACTERS = _BLOCK_TOKENS * 4
_LEAST_BLOCKS = 8


class PromptCache:
    """Remembers prefixes by a running checksum, least recently used first out (1,024 tokens: OpenAI's minimum)."""

    def __init__(self, capacity_blocks: int = 100_000) -> None:
        self._capacity = capacity_blocks
        self._known: OrderedDict[tuple[str, str, int, int], None] = OrderedDict()

    def look_up(self, quota: str, model: str, text: str) -> int:
        """Return how many tokens of `text` are cached for this quota and model, and remember the rest."""
        blocks = len(text) // _BLOCK_CHARACTERS
        if blocks < _LEAST_BLOCKS:
            return 0
        cached, unbroken, checksum = 0, True, 0
        for place in range(blocks):
            piece = text[place * _BLOCK_CHARACTERS : (place + 1) * _BLOCK_CHARACTERS]
            checksum = zlib.crc32(piece.encode("utf-8", "surrogatepass"), checksum)
            key = (quota, model, place, checksum)
            unbroken = unbroken and key in self._known
            cached += unbroken
            self._known[key] = None
            self._known.move_to_end(key)
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return cached * _BLOCK_TOKENS if cached >= _LEAST_BLOCKS else 0
