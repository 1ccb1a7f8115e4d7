"""Creates OAuth clients straight in the database: the way in, before there is anyone to ask through the API."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from auth.client_secrets import Peppers
from auth.clients import ClientSpec, create_client
from auth.errors import Invalid
from auth.principal import PLATFORM_TENANT_ID
from auth.scopes import AUDIT_READ, CLIENTS_READ, CLIENTS_WRITE, PLATFORM, TENANT_SCOPES, TENANTS_ACT
from auth.secret import Secret
from gateway.control.orm import OrmSessions
from gateway.custody import parse_peppers
from gateway.settings import Settings
from tenants import audit
from tenants.audit import Actor

_SHELL: Final = Actor("bootstrap")
"""Who did it, as the trail names somebody with the database's credentials and no client yet."""


@dataclass(frozen=True, slots=True)
class Made:
    """A new client's credentials; the secret is stored nowhere."""

    client_id: str
    client_secret: Secret


async def create_operator(
    settings: Settings, name: str, *, now: datetime, may_act: bool = False, may_manage: bool = False
) -> Made:
    """Create a client of the platform tenant with the scopes `platform` and `audit:read`, for the platform's own trail.

    `may_act` adds the way into tenants, `may_manage` the management of the operators' own clients.
    """
    more = (*((TENANTS_ACT,) if may_act else ()), *((CLIENTS_READ, CLIENTS_WRITE) if may_manage else ()))
    scopes = (PLATFORM, AUDIT_READ, *more)
    return await _create(settings, PLATFORM_TENANT_ID, ClientSpec(name=name, scopes=scopes), now=now)


async def create_tenant_client(settings: Settings, tenant_id: UUID, name: str, *, now: datetime) -> Made:
    """Create a client of a tenant with every scope that a tenant may hold."""
    return await _create(settings, tenant_id, ClientSpec(name=name, scopes=tuple(sorted(TENANT_SCOPES))), now=now)


async def _create(settings: Settings, tenant_id: UUID, spec: ClientSpec, *, now: datetime) -> Made:
    if settings.database_url is None:
        raise Invalid("DATABASE_URL is not set.", hint="Name the PostgreSQL of the installation.")
    try:
        peppers = Peppers(parse_peppers(settings.peppers))
    except ValueError as error:
        raise Invalid(f"LLM_PROXY_PEPPERS {error}") from None
    sessions = OrmSessions(settings.database_url.reveal(), pool_size=1)
    try:
        async with sessions.platform() as session:
            registered = await create_client(session, tenant_id, spec, peppers=peppers, now=now)
            client_id = registered.client.client_id
            detail = {"name": spec.name, "scopes": list(spec.scopes)}
            await audit.record(
                session, tenant_id, _SHELL, "client.create", f"client:{client_id}", at=now, detail=detail
            )
    finally:
        await sessions.aclose()
    if registered.secret is None:
        raise Invalid("The new client has no secret.", hint="Create it with the method client_secret_basic.")
    return Made(client_id, registered.secret)
