"""Binds a data key to its context where the provider takes no associated data: what is wrapped says where it belongs.

    wrapped plaintext = data key (32) ‖ HMAC-SHA256(data key, length-prefixed context) (32)

Moved to another row it still decrypts, and the tag does not fit. RSA encryption needs the public key alone, though: who
knows it and may write to the database can plant a data key of their own making. A tenant's share (`tenants.shares`)
closes that, and so does a symmetric key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from tenants.envelope import KEY_BYTES, length_prefixed
from tenants.errors import SealBroken

BOUND_BYTES: Final = KEY_BYTES + hashlib.sha256().digest_size


def bind(context: Sequence[str], key: bytes) -> bytes:
    """Return the 64 bytes to wrap; `key` is 32 bytes."""
    if len(key) != KEY_BYTES:
        raise ValueError("a data key is 32 bytes")
    return key + _tag(context, key)


def unbind(context: Sequence[str], bound: bytes) -> bytes:
    """Return the data key; `SealBroken` when it was bound to another context."""
    key, tag = bound[:KEY_BYTES], bound[KEY_BYTES:]
    if len(bound) != BOUND_BYTES or not hmac.compare_digest(tag, _tag(context, key)):
        raise SealBroken("the wrapped data key was changed or moved to another row")
    return key


def _tag(context: Sequence[str], key: bytes) -> bytes:
    bound = length_prefixed(b"llm-proxy/bound-data-key/1", *(part.encode() for part in context))
    return hmac.new(key, bound, hashlib.sha256).digest()
