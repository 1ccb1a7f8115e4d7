"""Where a provider key's secret is bound to: the context that its envelope is sealed with."""

from __future__ import annotations

from uuid import UUID

from auth.sealing import Sealed, Sealer
from auth.secret import Secret


def key_context(pool_id: UUID, key_id: UUID, number: int, provider: str) -> tuple[str, ...]:
    """Return what names a key version: an envelope copied to another pool, key, version or provider does not open."""
    return ("provider-key", str(pool_id), str(key_id), str(number), provider)


def source_context(source_id: UUID, driver: str) -> tuple[str, ...]:
    """Return what a source's admin credential is bound to."""
    return ("key-source", str(source_id), driver)


async def seal_key(
    sealer: Sealer, tenant_id: UUID, secret: Secret, *, pool_id: UUID, key_id: UUID, number: int, provider: str
) -> Sealed:
    """Seal a provider key for the row that is about to be written."""
    context = key_context(pool_id, key_id, number, provider)
    return await sealer.seal(tenant_id, context, secret.reveal().encode())
