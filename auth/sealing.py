"""How auth keeps private signing keys: sealed by whoever holds the data keys (`tenants.datakeys` in production)."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed blob and the data key that opens it."""

    data_key_id: UUID
    blob: bytes


class Sealer(Protocol):
    """Authenticated encryption under a tenant's data key; `context` is bound to the blob and never secret."""

    async def seal(self, tenant_id: UUID, context: tuple[str, ...], plaintext: bytes) -> Sealed:
        """Seal `plaintext` under the tenant's active data key."""

    async def open(self, tenant_id: UUID, data_key_id: UUID, context: tuple[str, ...], blob: bytes) -> bytes:
        """Open a blob; raises when the tenant, the data key or the context is not the one it was sealed for."""


class InMemorySealer:
    """The twin for tests: one random AES-256-GCM key, the context as additional data."""

    def __init__(self, data_key_id: UUID) -> None:
        self._data_key_id = data_key_id
        self._key = AESGCM(AESGCM.generate_key(256))

    async def seal(self, tenant_id: UUID, context: tuple[str, ...], plaintext: bytes) -> Sealed:
        """Seal `plaintext`; the nonce stands in front."""
        nonce = secrets.token_bytes(12)
        sealed = self._key.encrypt(nonce, plaintext, _bound(tenant_id, self._data_key_id, context))
        return Sealed(self._data_key_id, nonce + sealed)

    async def open(self, tenant_id: UUID, data_key_id: UUID, context: tuple[str, ...], blob: bytes) -> bytes:
        """Open a blob; `ValueError` when anything differs."""
        try:
            return self._key.decrypt(blob[:12], blob[12:], _bound(tenant_id, data_key_id, context))
        except InvalidTag:
            raise ValueError("the blob was not sealed for this tenant, data key and context") from None


def _bound(tenant_id: UUID, data_key_id: UUID, context: tuple[str, ...]) -> bytes:
    parts = (str(tenant_id), str(data_key_id), *context)
    return b"".join(len(part.encode()).to_bytes(4) + part.encode() for part in parts)
