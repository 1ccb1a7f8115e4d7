"""How many tokens a prompt may have, by its bytes: what is reserved until the provider says how many it had. Pure.

Text has about four bytes a token. Images, sound and documents come as base64, and cost a small part of that: OpenAI
takes 85 to some 1,500 tokens for an image of any size (platform.openai.com/docs/guides/images-vision), Anthropic
width x height / 750, at most 1,600 (docs.anthropic.com/en/docs/build-with-claude/vision), Gemini 258 a tile
(ai.google.dev/gemini-api/docs/tokens).
"""

from __future__ import annotations

import string
from typing import Final

SMALL_BYTES: Final = 8 * 1024
"""A body up to this size is taken for text as it is."""
_BLOCK_BYTES: Final = 2048
_SAMPLE_BYTES: Final = 1024
"""No text has so many letters and digits in a row; of each block so much is looked at."""
_BASE64: Final = (string.ascii_letters + string.digits + "+/-_=").encode()
_BYTES_A_TOKEN: Final = 4
_BLOB_TOKENS: Final = 1_000
_TOKENS_A_BLOCK: Final = _BLOCK_BYTES // 256


def prompt_tokens(body: bytes) -> int:
    """Estimate the tokens of a JSON request's prompt; takes time with its size."""
    size = len(body)
    if size <= SMALL_BYTES:
        return size // _BYTES_A_TOKEN + 1
    blocks = blobs = 0
    before = False
    for at in range(0, size - _BLOCK_BYTES, _BLOCK_BYTES):
        within = not body[at : at + _SAMPLE_BYTES].translate(None, _BASE64)
        blocks += within
        blobs += within and not before
        before = within
    text = size - blocks * _BLOCK_BYTES
    return text // _BYTES_A_TOKEN + blobs * _BLOB_TOKENS + blocks * _TOKENS_A_BLOCK + 1
