"""The store of OAuth clients and their secrets; every call names the tenant, and row-level security checks it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select
from uuid_utils.compat import uuid7

from auth import client_metadata, client_secrets
from auth.client_secrets import MAX_LIVE_SECRETS, Peppers
from auth.details import parse_details, write_details
from auth.errors import Conflict, Invalid, NotFound
from auth.etag import check_if_match
from auth.models import ClientSecret, OAuthClient
from auth.paging import Page, PageAsk, cut_page
from auth.principal import PLATFORM_TENANT_ID
from auth.revocation_store import revoke_key
from auth.revocations import MAX_TOKEN_LIFETIME_S, client_key
from auth.scopes import DEFAULT_CLIENT_SCOPES, SCOPES, TENANT_SCOPES, TOKENS_ISSUE, format_scope, unknown_scopes
from auth.secret import Secret

CLIENT_ID_PREFIX = "lpc_"
SECRET_METHODS = frozenset({"client_secret_basic", "client_secret_post"})
"""Two places for one credential: a client registered for either may use both."""


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """What a client is registered with; `metadata` holds what its authentication method needs (RFC 7591 names).

    `grant_types` left empty follow from the scopes: client_credentials, and token exchange with `tokens:issue`.
    """

    name: str
    scopes: tuple[str, ...] = DEFAULT_CLIENT_SCOPES
    auth_method: str = "client_secret_basic"
    grant_types: tuple[str, ...] = ()
    authorization_details: Sequence[Mapping[str, Any]] = ()
    token_lifetime_s: int = 3600
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Registered:
    """A new client; `secret` is shown this once, None for methods without one."""

    client: OAuthClient
    secret: Secret | None


def new_client_id() -> str:
    """Return a fresh client id: 22 base62 digits, so that it can never equal a subject (RFC 9700 section 4.15)."""
    return CLIENT_ID_PREFIX + client_secrets.base62(int.from_bytes(secrets.token_bytes(16)), 22)


async def create_client(
    session: AsyncSession, tenant_id: UUID, spec: ClientSpec, *, peppers: Peppers, now: datetime
) -> Registered:
    """Register a client, with a first secret if its method uses one; `Invalid` lists everything that is wrong."""
    _check(tenant_id, spec)
    client = OAuthClient(
        id=uuid7(),
        tenant_id=tenant_id,
        client_id=new_client_id(),
        name=spec.name,
        auth_method=spec.auth_method,
        grant_types=list(spec.grant_types or _grant_types_for(spec.scopes)),
        scopes=list(spec.scopes),
        authorization_details=[dict(each) for each in spec.authorization_details],
        client_metadata=dict(spec.metadata),
        token_lifetime_s=spec.token_lifetime_s,
        created_at=now,
        updated_at=now,
    )
    session.add(client)
    await session.flush()
    secret = None
    if spec.auth_method in SECRET_METHODS:
        _, secret = await _store_secret(session, client, peppers, now=now, expires_at=None)
    return Registered(client, secret)


async def get_client(session: AsyncSession, tenant_id: UUID, client_id: str, *, lock: bool = False) -> OAuthClient:
    """Return the tenant's client named `client_id`; `NotFound` for another tenant's too.

    `lock` keeps it as it is until the transaction ends, and reads it anew: what the session read before may be old.
    """
    query = select(OAuthClient).where(col(OAuthClient.tenant_id) == tenant_id, col(OAuthClient.client_id) == client_id)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    found = (await session.execute(query)).scalar_one_or_none()
    if found is None:
        raise NotFound(
            f"There is no client {client_id[:64]} in this tenant.", hint="List the clients with GET /api/v1/clients."
        )
    return found


async def list_clients(session: AsyncSession, tenant_id: UUID, ask: PageAsk) -> Page[OAuthClient]:
    """Return one page of the tenant's clients, oldest first."""
    query = select(OAuthClient).where(col(OAuthClient.tenant_id) == tenant_id)
    if ask.after is not None:
        query = query.where(col(OAuthClient.id) > ask.after)
    rows = (await session.execute(query.order_by(col(OAuthClient.id)).limit(ask.fetch))).scalars().all()
    return cut_page(rows, ask, key=lambda row: row.id)


async def update_client(
    session: AsyncSession,
    tenant_id: UUID,
    client_id: str,
    changes: Mapping[str, Any],
    *,
    if_match: str | None,
    now: datetime,
) -> OAuthClient:
    """Apply `changes` (names of `ClientSpec`, and `status`) to the version that `if_match` names.

    Disabling a client, taking scopes from it or changing its details revokes every token it has got so far.
    """
    client = await get_client(session, tenant_id, client_id, lock=True)
    check_if_match(if_match, client.version)
    before = spec_of(client)
    if before.grant_types == _grant_types_for(before.scopes) and "grant_types" not in changes:
        before = replace(before, grant_types=())  # they followed from the scopes and go on doing so
    merged = {name: changes.get(name, getattr(before, name)) for name in ClientSpec.__slots__}
    spec = ClientSpec(**merged)
    _check(tenant_id, spec)
    if (spec.auth_method in SECRET_METHODS) != (before.auth_method in SECRET_METHODS):
        raise Invalid(
            "auth_method cannot change between secret and key.",
            hint="Create another client with the new method and delete this one when nobody uses it.",
            errors=(("/auth_method", "cannot change between secret and key"),),
        )
    status = changes.get("status", client.status)
    narrowed = (
        (status != "active" and client.status == "active")
        or bool(set(before.scopes) - set(spec.scopes))
        or list(before.authorization_details) != list(spec.authorization_details)
    )
    client.name, client.auth_method, client.status = spec.name, spec.auth_method, status
    client.grant_types, client.scopes = list(spec.grant_types or _grant_types_for(spec.scopes)), list(spec.scopes)
    client.authorization_details = [dict(each) for each in spec.authorization_details]
    client.client_metadata = dict(spec.metadata)
    client.token_lifetime_s = spec.token_lifetime_s
    client.version += 1
    client.updated_at = now
    await session.flush()
    if narrowed:
        await _revoke_all(session, client, now)
    return client


async def delete_client(
    session: AsyncSession, tenant_id: UUID, client_id: str, *, if_match: str | None, now: datetime
) -> None:
    """Remove a client with its secrets, and revoke every token it has got."""
    client = await get_client(session, tenant_id, client_id, lock=True)
    check_if_match(if_match, client.version)
    await _revoke_all(session, client, now)
    await session.delete(client)
    await session.flush()


async def list_secrets(session: AsyncSession, client: OAuthClient) -> list[ClientSecret]:
    """Return the client's secrets, oldest first: what identifies them, never what they are."""
    query = (
        select(ClientSecret)
        .where(col(ClientSecret.tenant_id) == client.tenant_id, col(ClientSecret.client_pk) == client.id)
        .order_by(col(ClientSecret.id))
    )
    return list((await session.execute(query)).scalars().all())


async def add_secret(
    session: AsyncSession,
    tenant_id: UUID,
    client_id: str,
    *,
    peppers: Peppers,
    now: datetime,
    expires_in_s: int | None = None,
    retire_others_in_s: int | None = None,
) -> tuple[ClientSecret, Secret]:
    """Give the client a second secret; `retire_others_in_s` sets when the older ones stop working.

    At most two live at once: `Conflict` says which to delete. Expired ones are removed on the way.
    """
    client = await get_client(session, tenant_id, client_id, lock=True)
    if client.auth_method not in SECRET_METHODS:
        raise Conflict(
            f"The client authenticates by {client.auth_method} and has no secrets.",
            hint="Create a client with auth_method client_secret_basic.",
        )
    live = []
    for each in await list_secrets(session, client):
        if each.expires_at is not None and each.expires_at <= now:
            await session.delete(each)
        else:
            live.append(each)
    if len(live) >= MAX_LIVE_SECRETS:
        raise Conflict(
            f"The client has {len(live)} live secrets already.",
            hint=f"Delete the one no longer used with DELETE /api/v1/clients/{client_id}/secrets/{live[0].id}.",
        )
    if retire_others_in_s is not None:
        end = now + timedelta(seconds=retire_others_in_s)
        for each in live:
            each.expires_at = end if each.expires_at is None else min(each.expires_at, end)
    expires_at = None if expires_in_s is None else now + timedelta(seconds=expires_in_s)
    return await _store_secret(session, client, peppers, now=now, expires_at=expires_at)


async def delete_secret(session: AsyncSession, tenant_id: UUID, client_id: str, secret_id: UUID) -> None:
    """Remove one secret at once; tokens got with it live on until they expire or are revoked."""
    client = await get_client(session, tenant_id, client_id, lock=True)
    for each in await list_secrets(session, client):
        if each.id == secret_id:
            await session.delete(each)
            await session.flush()
            return
    raise NotFound(f"The client has no secret {secret_id}.", hint=f"List them with GET /api/v1/clients/{client_id}.")


def spec_of(client: OAuthClient) -> ClientSpec:
    """Return what a stored client is registered with."""
    return ClientSpec(
        name=client.name,
        scopes=tuple(client.scopes),
        auth_method=client.auth_method,
        grant_types=tuple(client.grant_types),
        authorization_details=tuple(client.authorization_details),
        token_lifetime_s=client.token_lifetime_s,
        metadata=client.client_metadata,
    )


def _grant_types_for(scopes: Sequence[str]) -> tuple[str, ...]:
    return client_metadata.GRANT_TYPES if TOKENS_ISSUE in scopes else (client_metadata.CLIENT_CREDENTIALS,)


async def _store_secret(
    session: AsyncSession, client: OAuthClient, peppers: Peppers, *, now: datetime, expires_at: datetime | None
) -> tuple[ClientSecret, Secret]:
    secret = client_secrets.new_secret()
    row = ClientSecret(
        id=uuid7(),
        tenant_id=client.tenant_id,
        client_pk=client.id,
        mac=peppers.mac(client.id, secret.reveal()),
        pepper_version=peppers.current,
        prefix=client_secrets.shown_prefix(secret),
        created_at=now,
        expires_at=expires_at,
    )
    session.add(row)
    await session.flush()
    return row, secret


async def _revoke_all(session: AsyncSession, client: OAuthClient, now: datetime) -> None:
    until = now + timedelta(seconds=MAX_TOKEN_LIFETIME_S)
    await revoke_key(session, client.tenant_id, client_key(client.client_id), now=now, expires_at=until)


def _check(tenant_id: UUID, spec: ClientSpec) -> None:
    errors: list[tuple[str, str]] = []
    if not 1 <= len(spec.name.strip()) <= 200 or not spec.name.isprintable():
        errors.append(("/name", "needs 1 to 200 printable characters"))
    if unknown := unknown_scopes(spec.scopes):
        errors.append(("/scopes", f"unknown: {', '.join(unknown)}; choose from {', '.join(SCOPES)}"))
    elif tenant_id != PLATFORM_TENANT_ID and not set(spec.scopes) <= TENANT_SCOPES:
        errors.append(
            ("/scopes", f"{format_scope(set(spec.scopes) - TENANT_SCOPES)} is for clients of the platform tenant only")
        )
    if not spec.scopes:
        errors.append(("/scopes", "needs at least one scope"))
    if not 60 <= spec.token_lifetime_s <= 86_400:
        errors.append(("/token_lifetime_s", "must be between 60 and 86400 seconds"))
    if not set(spec.grant_types) <= set(client_metadata.GRANT_TYPES):
        errors.append(("/grant_types", f"choose from {', '.join(client_metadata.GRANT_TYPES)}"))
    errors += client_metadata.check(spec.auth_method, spec.metadata)
    if errors:
        raise Invalid(
            f"The client is not valid: {errors[0][0][1:]} {errors[0][1]}.",
            hint="Mend what errors lists and send it again.",
            errors=tuple(errors),
        )
    write_details(parse_details(list(spec.authorization_details)))
