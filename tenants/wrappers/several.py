"""Several KEK providers at once: the first wraps, each opens its own. For moving from one provider to another."""

from __future__ import annotations

from collections.abc import Sequence

from tenants.errors import KekDisabled
from tenants.keyring import KekStatus, KeyWrapper, Wrapped


class SeveralWrappers:
    """Put the new provider first, rewrap, then take the old one out."""

    def __init__(self, first: KeyWrapper, *others: KeyWrapper) -> None:
        self._wrappers = (first, *others)

    @property
    def uri(self) -> str:
        """The first provider's KEK."""
        return self._wrappers[0].uri

    def opens(self, kek_uri: str) -> bool:
        """Tell whether any of them knows the KEK."""
        return any(wrapper.opens(kek_uri) for wrapper in self._wrappers)

    async def wrap(self, context: Sequence[str], plaintext: bytes) -> Wrapped:
        """Wrap by the first."""
        return await self._wrappers[0].wrap(context, plaintext)

    async def unwrap(self, context: Sequence[str], wrapped: Wrapped) -> bytes:
        """Unwrap by the one that knows the KEK."""
        return await self._which(wrapped.kek_uri).unwrap(context, wrapped)

    async def status(self, kek_uri: str) -> KekStatus:
        """Ask the one that knows the KEK; one that nobody knows counts as disabled."""
        return await self._which(kek_uri).status(kek_uri) if self.opens(kek_uri) else "disabled"

    def _which(self, kek_uri: str) -> KeyWrapper:
        for wrapper in self._wrappers:
            if wrapper.opens(kek_uri):
                return wrapper
        raise KekDisabled(
            "The key-encryption key of this data is not configured.",
            hint="Add the provider or keyring that wrapped it, after the current one.",
            debug=kek_uri,
        )
