"""Keyless pools: the gateway's own issuer vouches for the tenant, and no provider key exists to be stored or rotated.

`create` exchanges an assertion for a token, as the data path does for itself: here it shows whether that works.
See `tenants.federation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from tenants.federation import FederatedSettings, claims_of, exchange, settings_problem
from tenants.sources.protocol import Assertions, Capabilities, HttpCalls, ProviderKeyMade, SourceRefused


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the issuer vouches for, and what it calls itself."""

    issuer: str
    tenant_id: UUID
    source_id: UUID
    assertions: Assertions


class FederatedDriver:
    """Needs no admin credential: the provider was told to trust the issuer."""

    capabilities = Capabilities(mints=False, finds=False, repeatable=True, revokes=False, keyless=True)

    def __init__(
        self,
        settings: FederatedSettings,
        http: HttpCalls,
        now_unix: Callable[[], float],
        identity: Identity | None,
    ) -> None:
        problem = settings_problem(settings)
        if problem is not None:
            raise SourceRefused(problem)
        self._settings = settings
        self.provider = settings.provider
        self._http = http
        self._now_unix = now_unix
        self._identity = identity

    async def create(self, tag: str, *, in_use: str | None) -> ProviderKeyMade:
        """Get a token; it ends by itself."""
        del in_use
        who = self._identity
        if who is None:
            raise SourceRefused("this process has no issuer to sign assertions with")
        claims = claims_of(
            self._settings,
            issuer=who.issuer,
            tenant_id=who.tenant_id,
            source_id=who.source_id,
            token_id=tag,
            now=self._now_unix(),
        )
        assertion = await who.assertions.sign(claims, algorithm=self._settings.algorithm)
        return ProviderKeyMade(tag, (await exchange(self._http, self._settings, assertion)).secret)

    async def find(self, tag: str) -> ProviderKeyMade | None:
        """Nothing lasts that could be found."""
        del tag
        return None

    async def disable(self, ref: str) -> None:
        """Nothing."""

    async def enable(self, ref: str) -> None:
        """Nothing."""

    async def revoke(self, ref: str) -> None:
        """Nothing: trust is taken back at the provider."""
