"""Seal and open secrets under a tenant's data key, bound to the place where they are stored. Pure.

    stored  = 0x01 ‖ salt (32) ‖ commitment (32) ‖ nonce (12) ‖ AES-256-GCM ciphertext and tag (16)
    key ‖ commitment = HKDF-SHA512(data key, salt, info = context)                       (RFC 5869)
    context = length-prefixed (scheme, data key id, tenant id, parts …), also the AAD of the cipher

A fresh key is derived for each envelope, so no nonce is ever used twice under one key. AES-GCM alone does not commit
to its key (two keys can open one ciphertext to two texts); the derived commitment does, and it is compared in constant
time before anything is decrypted. The context makes an envelope useless in any other row: another
tenant, key or version.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tenants.errors import SealBroken

RandomBytes = Callable[[int], bytes]
"""Gives n unpredictable bytes: `os.urandom` in production, a fixed sequence in known-answer tests."""

SCHEME: Final = "llm-proxy/envelope/1"
VERSION: Final = b"\x01"
KEY_BYTES: Final = 32
SALT_BYTES: Final = 32
COMMITMENT_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
HEADER_BYTES: Final = len(VERSION) + SALT_BYTES + COMMITMENT_BYTES + NONCE_BYTES
OVERHEAD_BYTES: Final = HEADER_BYTES + TAG_BYTES


@dataclass(frozen=True, slots=True)
class Context:
    """Where an envelope belongs: the data key that seals it, the tenant, and the parts that name the row."""

    data_key_id: UUID
    tenant_id: UUID
    parts: tuple[str, ...]

    def encode(self) -> bytes:
        """Return the injective encoding: no two different contexts share one, whatever their parts contain."""
        return length_prefixed(
            SCHEME.encode(), self.data_key_id.bytes, self.tenant_id.bytes, *(part.encode() for part in self.parts)
        )


def length_prefixed(*fields: bytes) -> bytes:
    """Join `fields` as count and (length, bytes) pairs, 4-byte big-endian each, so that boundaries cannot shift."""
    out = bytearray(len(fields).to_bytes(4, "big"))
    for field in fields:
        out += len(field).to_bytes(4, "big")
        out += field
    return bytes(out)


def seal(data_key: bytes, context: Context, plaintext: bytes, *, random_bytes: RandomBytes = os.urandom) -> bytes:
    """Return the envelope of `plaintext`, `OVERHEAD_BYTES` longer; `data_key` is 32 bytes."""
    bound = context.encode()
    salt = random_bytes(SALT_BYTES)
    nonce = random_bytes(NONCE_BYTES)
    key, commitment = derive(data_key, salt, bound)
    return VERSION + salt + commitment + nonce + encrypt(key, nonce, plaintext, bound)


def open_sealed(data_key: bytes, context: Context, blob: bytes) -> bytes:
    """Return what `seal` was given; `SealBroken` if a bit of `blob`, the key or the context is another."""
    if len(blob) < OVERHEAD_BYTES:
        raise SealBroken("the envelope is too short")
    if blob[:1] != VERSION:
        raise SealBroken("the envelope has an unknown version")
    bound = context.encode()
    salt = blob[1 : 1 + SALT_BYTES]
    stored = blob[1 + SALT_BYTES : 1 + SALT_BYTES + COMMITMENT_BYTES]
    nonce = blob[HEADER_BYTES - NONCE_BYTES : HEADER_BYTES]
    key, commitment = derive(data_key, salt, bound)
    if not hmac.compare_digest(commitment, stored):
        raise SealBroken("the envelope belongs to another data key or context")
    return decrypt(key, nonce, blob[HEADER_BYTES:], bound)


def encrypt(key: bytes, nonce: bytes, plaintext: bytes, bound: bytes) -> bytes:
    """Return AES-256-GCM ciphertext and tag (NIST SP 800-38D); `nonce` is 12 bytes and never used twice with a key."""
    return AESGCM(key).encrypt(nonce, plaintext, bound)


def decrypt(key: bytes, nonce: bytes, ciphertext: bytes, bound: bytes) -> bytes:
    """Undo `encrypt`; `SealBroken` when a bit of anything is another."""
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, bound)
    except InvalidTag:
        raise SealBroken("the envelope was changed") from None


def derive(data_key: bytes, salt: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Return an envelope's key and commitment: the halves of 64 bytes of HKDF-SHA512 (RFC 5869)."""
    if len(data_key) != KEY_BYTES:
        raise ValueError("a data key is 32 bytes")
    okm = HKDF(SHA512(), KEY_BYTES + COMMITMENT_BYTES, salt, info).derive(data_key)
    return okm[:KEY_BYTES], okm[KEY_BYTES:]
