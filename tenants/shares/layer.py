"""A KEK provider with a tenant's share on top: what the database keeps opens with both, or not at all.

    stored = envelope under the share, bound to data key and tenant, of (what the KEK's provider wrapped)
    kek_uri = "share+" ‖ the KEK's own URI

The scheme shows in the URI, so that data keys wrapped before the shares were introduced are told apart and a rewrap
takes them along. Wraps that belong to no tenant go to the provider as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from tenants.envelope import Context, open_sealed, seal
from tenants.errors import KekDisabled
from tenants.keyring import KekStatus, KeyWrapper, Wrapped
from tenants.shares.protocol import ShareStore

PREFIX: Final = "share+"
DATA_KEY: Final = "data-key"


def wrap_context(tenant_id: UUID, data_key_id: UUID) -> tuple[str, ...]:
    """Return what a wrapped data key is bound to: opaque ids, as a KMS logs them."""
    return (DATA_KEY, str(tenant_id), str(data_key_id))


class ShareLayer:
    """Wraps under `inner` and then under the tenant's share; without `shares` it wraps as `inner` does.

    It opens what has no share on it as well.
    """

    def __init__(self, inner: KeyWrapper, shares: ShareStore | None) -> None:
        self._inner, self._shares = inner, shares

    @property
    def uri(self) -> str:
        """The inner KEK, and that a share lies on top."""
        return f"{PREFIX}{self._inner.uri}" if self._shares is not None else self._inner.uri

    def opens(self, kek_uri: str) -> bool:
        """Tell whether the inner KEK is known."""
        return self._inner.opens(kek_uri.removeprefix(PREFIX))

    async def wrap(self, context: Sequence[str], plaintext: bytes) -> Wrapped:
        """Wrap; the share is durable before anything is sealed under it."""
        bound = _tenant_of(context)
        if self._shares is None or bound is None:
            return await self._inner.wrap(context, plaintext)
        tenant_id, data_key_id = bound
        share = await self._shares.get_or_create(tenant_id)
        wrapped = await self._inner.wrap(context, plaintext)
        place = Context(data_key_id, tenant_id, ("share", wrapped.kek_uri))
        return Wrapped(f"{PREFIX}{wrapped.kek_uri}", seal(share, place, wrapped.blob))

    async def unwrap(self, context: Sequence[str], wrapped: Wrapped) -> bytes:
        """Take the share's envelope off, then unwrap; `Shredded` when the share was destroyed."""
        if not wrapped.kek_uri.startswith(PREFIX):
            return await self._inner.unwrap(context, wrapped)
        bound = _tenant_of(context)
        if self._shares is None or bound is None:
            raise KekDisabled(
                "The tenants' shares of this data are not configured.",
                hint="Set LLM_PROXY_KEK_SHARES to the place where they are.",
                debug=wrapped.kek_uri,
            )
        tenant_id, data_key_id = bound
        kek_uri = wrapped.kek_uri.removeprefix(PREFIX)
        share = await self._shares.get(tenant_id)
        blob = open_sealed(share, Context(data_key_id, tenant_id, ("share", kek_uri)), wrapped.blob)
        return await self._inner.unwrap(context, Wrapped(kek_uri, blob))

    async def status(self, kek_uri: str) -> KekStatus:
        """Ask the inner provider."""
        return await self._inner.status(kek_uri.removeprefix(PREFIX))


def _tenant_of(context: Sequence[str]) -> tuple[UUID, UUID] | None:
    if len(context) != 3 or context[0] != DATA_KEY:
        return None
    return UUID(context[1]), UUID(context[2])
