"""Who the client is: credentials checked against the store, with one answer for every failure.

An unknown client costs the same query and the same MACs as a wrong secret, and gets the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from auth import assertions, certificates, client_secrets
from auth.client_metadata import FEDERATED
from auth.client_secrets import Peppers, StoredSecret
from auth.clients import SECRET_METHODS
from auth.credentials import AssertionCredentials, CertificateCredentials, Credentials, SecretCredentials
from auth.details import Detail, own_limits, read_details
from auth.form import Call
from auth.models import ClientSecret, OAuthClient
from auth.oauth_errors import InvalidClient
from auth.remote_keys import RemoteKeys
from auth.replay import first_use

LAST_USED_STEP = timedelta(minutes=1)
"""`last_used_at` is written at most this often, so that busy clients do not turn every token into a write."""

_tenant = sa.table("tenant", sa.column("id", sa.Uuid), sa.column("slug"), sa.column("status"))


@dataclass(frozen=True, slots=True)
class AuthenticatedClient:
    """A client that has proven who it is, in the form that Authlib's grants ask (`ClientMixin`)."""

    id: UUID
    tenant_id: UUID
    tenant_slug: str
    client_id: str
    scopes: frozenset[str]
    details: tuple[Detail, ...]
    grant_types: tuple[str, ...]
    token_lifetime_s: int
    metadata: Mapping[str, Any] = field(repr=False)
    auth_method: str = ""

    def check_grant_type(self, grant_type: str) -> bool:
        """Tell whether the client was registered for `grant_type`."""
        return grant_type in self.grant_types


@dataclass(frozen=True, slots=True)
class _Found:
    client: OAuthClient
    tenant_slug: str
    usable: bool
    secrets: tuple[StoredSecret, ...]


class ClientAuthenticator:
    """Checks credentials in a platform transaction: the tenant is only known once the client is."""

    def __init__(self, peppers: Peppers, remote: RemoteKeys) -> None:
        self._peppers = peppers
        self._remote = remote

    async def authenticate(
        self, session: AsyncSession, call: Call, credentials: Credentials, *, issuer: str, now: float
    ) -> AuthenticatedClient:
        """Return the client, or raise `InvalidClient`; the transaction must commit even when the request then fails.

        `KeysNeeded` asks for keys to be fetched, and for another try.

        `issuer` is the one whose endpoint was called: an assertion names it as its only audience.
        """
        moment = datetime.fromtimestamp(now, UTC)
        if isinstance(credentials, SecretCredentials):
            found = await self._by_secret(session, credentials, moment)
        elif isinstance(credentials, AssertionCredentials):
            found = await self._by_assertion(session, credentials, issuer, now)
        else:
            found = await self._by_certificate(session, call, credentials, moment)
        client = found.client
        return AuthenticatedClient(
            id=client.id,
            tenant_id=client.tenant_id,
            tenant_slug=found.tenant_slug,
            client_id=client.client_id,
            scopes=frozenset(client.scopes),
            details=own_limits(read_details(client.authorization_details), client.client_id),
            grant_types=tuple(client.grant_types),
            token_lifetime_s=client.token_lifetime_s,
            metadata=client.client_metadata,
            auth_method=client.auth_method,
        )

    async def _by_secret(self, session: AsyncSession, given: SecretCredentials, now: datetime) -> _Found:
        presented = given.secret.reveal()
        if not client_secrets.well_formed(presented):
            raise InvalidClient  # before any query, and for known and unknown clients alike
        found = await _find(session, given.client_id)
        stored = found.secrets if found else ()
        hit = client_secrets.match(self._peppers, found.client.id if found else None, stored, presented, now=now)
        if found is None or hit is None or not found.usable or found.client.auth_method not in SECRET_METHODS:
            raise InvalidClient
        stale_mac = hit.pepper_version != self._peppers.current
        if stale_mac or hit.last_used_at is None or now - hit.last_used_at >= LAST_USED_STEP:
            changes: dict[str, Any] = {"last_used_at": now}
            if stale_mac:
                changes["mac"] = self._peppers.mac(found.client.id, presented)
                changes["pepper_version"] = self._peppers.current
            await session.execute(sa.update(ClientSecret).where(col(ClientSecret.id) == hit.id).values(**changes))
        return found

    async def _by_assertion(
        self, session: AsyncSession, given: AssertionCredentials, issuer: str, now: float
    ) -> _Found:
        token = assertions.read_unverified(given.assertion.reveal())
        if token is not None and given.client_id is not None and token.claims.get("sub") != given.client_id:
            return await self._by_federation(session, token, given.client_id, issuer, now)
        claimed = token.claims.get("sub") if token else None
        if token is None or not isinstance(claimed, str) or len(claimed) > 200:
            raise InvalidClient
        found = await _find(session, claimed)
        if found is None or not found.usable or found.client.auth_method != "private_key_jwt":
            raise InvalidClient
        if not assertions.signed_by(token, self._keys_of(found.client, token, now)):
            raise InvalidClient
        if assertions.check_client_assertion(token.claims, issuer=issuer, client_id=claimed, now=now) is not None:
            raise InvalidClient
        until = float(token.claims["exp"]) + assertions.SKEW_S
        jti = str(token.claims["jti"])
        if not await first_use(session, found.client.tenant_id, "assertion", claimed, jti, expires_at=until):
            raise InvalidClient
        return found

    async def _by_federation(
        self, session: AsyncSession, token: assertions.Unverified, client_id: str, issuer: str, now: float
    ) -> _Found:
        """Authenticate a workload by the JWT of its own platform, which names it and us and nobody else.

        Such a token is its platform's to renew, so one may come more than once while it lives.
        """
        found = await _find(session, client_id)
        if found is None or not found.usable or found.client.auth_method != FEDERATED:
            raise InvalidClient
        federation = found.client.client_metadata["federation"]
        keys = self._remote.keys(federation["jwks_uri"], _kid(token), now=now)
        fault = assertions.check_federated(
            token.claims, platform=federation["issuer"], subject=federation["subject"], audience=issuer, now=now
        )
        if fault is not None or not assertions.signed_by(token, keys):
            raise InvalidClient
        return found

    def _keys_of(self, client: OAuthClient, token: assertions.Unverified, now: float) -> Sequence[Mapping[str, Any]]:
        uri = client.client_metadata.get("jwks_uri")
        if uri is not None:
            return self._remote.keys(uri, _kid(token), now=now)
        keys: Sequence[Mapping[str, Any]] = client.client_metadata.get("jwks", {}).get("keys", ())
        return keys

    async def _by_certificate(
        self, session: AsyncSession, call: Call, given: CertificateCredentials, now: datetime
    ) -> _Found:
        found = await _find(session, given.client_id)
        if found is None or not found.usable or call.certificate is None:
            raise InvalidClient
        if not certificates.fits(call.certificate, found.client.auth_method, found.client.client_metadata, now=now):
            raise InvalidClient
        return found


def _kid(token: assertions.Unverified) -> str | None:
    kid = token.header.get("kid")
    return kid if isinstance(kid, str) else None


async def _find(session: AsyncSession, client_id: str) -> _Found | None:
    """Load client, tenant and secrets in one query, whether or not they exist."""
    rows = (
        await session.execute(
            sa.select(OAuthClient, _tenant.c.slug, _tenant.c.status, ClientSecret)
            .join(_tenant, _tenant.c.id == col(OAuthClient.tenant_id))
            .outerjoin(ClientSecret, col(ClientSecret.client_pk) == col(OAuthClient.id))
            .where(col(OAuthClient.client_id) == client_id)
            .order_by(col(ClientSecret.id).desc())
        )
    ).all()
    if not rows:
        return None
    client, slug, status, _ = rows[0]
    secrets = tuple(
        StoredSecret(row[3].id, row[3].mac, row[3].pepper_version, row[3].expires_at, row[3].last_used_at)
        for row in rows
        if row[3] is not None
    )
    return _Found(
        client, slug, client.status == "active" and status == "active", secrets[: client_secrets.MAX_LIVE_SECRETS]
    )
