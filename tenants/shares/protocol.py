"""Where each tenant's share is kept: the half of its wrapping that never lies in the database or a backup of it.

A share is 32 random bytes a tenant. A wrapped data key is sealed under it once more (`tenants.shares.layer`), so that
whoever holds the database, old backups included, and the KEK still needs the share. Destroying it is what makes a
deleted tenant's ciphertexts unreadable wherever copies of them lie: crypto-shredding (NIST SP 800-88, cryptographic
erase). Here stands the one face of every store, and its in-memory twin.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

from tenants.errors import KekUnavailable, SealBroken

SHARE_BYTES: Final = 32

RandomBytes = Callable[[int], bytes]


class Shredded(SealBroken):
    """The tenant's share was destroyed: nothing that was sealed for it opens again, wherever it was copied to."""

    def __init__(self, tenant_id: UUID) -> None:
        super().__init__(f"tenant {tenant_id} was shredded: its share was destroyed")


class ShareMissing(KekUnavailable):
    """A share is not in the store, and nothing says that it was destroyed: the wrong store, or an incomplete copy."""

    code = "share_missing"

    def __init__(self, tenant_id: UUID) -> None:
        super().__init__(
            "Stored secrets cannot be read right now.",
            hint="Check that LLM_PROXY_KEK_SHARES names the store that these tenants' shares were written to.",
            debug=f"no share of tenant {tenant_id}",
        )


class ShareStore(Protocol):
    """Keeps one share a tenant. Every call raises `KekUnavailable` when the store does not answer."""

    @property
    def uri(self) -> str:
        """Where the shares are, as it was configured."""
        ...

    async def get(self, tenant_id: UUID) -> bytes:
        """Return the share; `Shredded` or `ShareMissing` when there is none."""
        ...

    async def get_or_create(self, tenant_id: UUID) -> bytes:
        """Return the share, made durable first if it is new; `Shredded` when it was destroyed before."""
        ...

    async def destroy(self, tenant_id: UUID, *, at: datetime) -> None:
        """Destroy the share for good and leave a note of it; what was destroyed already keeps its first note.

        The note is written first. Killed in between, the call is simply made again.
        """
        ...

    async def shredded(self) -> Mapping[UUID, datetime]:
        """Return the notes: which tenants' shares were destroyed, and when."""
        ...


class InMemoryShares:
    """The twin: shares in a dictionary."""

    uri = "memory"

    def __init__(self, *, random_bytes: RandomBytes = os.urandom) -> None:
        self.shares: dict[UUID, bytes] = {}
        self.notes: dict[UUID, datetime] = {}
        self._random_bytes = random_bytes

    async def get(self, tenant_id: UUID) -> bytes:
        """Return the share."""
        if tenant_id in self.shares:
            return self.shares[tenant_id]
        raise Shredded(tenant_id) if tenant_id in self.notes else ShareMissing(tenant_id)

    async def get_or_create(self, tenant_id: UUID) -> bytes:
        """Return the share or draw one."""
        if tenant_id in self.notes:
            raise Shredded(tenant_id)
        return self.shares.setdefault(tenant_id, self._random_bytes(SHARE_BYTES))

    async def destroy(self, tenant_id: UUID, *, at: datetime) -> None:
        """Forget the share."""
        self.notes.setdefault(tenant_id, at)
        self.shares.pop(tenant_id, None)

    async def shredded(self) -> Mapping[UUID, datetime]:
        """Return the notes."""
        return dict(self.notes)
