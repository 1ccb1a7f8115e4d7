"""/api/v1/tenants: for the operators of the installation."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from litestar import Response, Router, delete, get, patch, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath, JSONBody
from msgspec import UNSET
from sqlalchemy.ext.asyncio import AsyncSession

from auth.clients import ClientSpec, create_client
from auth.errors import Conflict, NotPermitted
from auth.guards import principal_of, requires
from auth.paging import cut_page, page_ask
from auth.principal import PLATFORM_TENANT_ID
from auth.revocation_store import revoke_key
from auth.revocations import MAX_TOKEN_LIFETIME_S, tenant_key
from auth.scopes import PLATFORM, TENANT_SCOPES
from tenants import audit
from tenants.api.call import Caller, Cursor, IfMatch, Limit, once, reply
from tenants.api.services import Services
from tenants.api.views import tenant_out
from tenants.checks import refuse, settings_problems, tenant_name_problems, tenant_problems
from tenants.merge_patch import merge_patch
from tenants.models import Tenant
from tenants.schemas import FirstClient, TenantCreated, TenantIn, TenantOut, TenantPage, TenantPatch
from tenants.shredding import shred_noted
from tenants.store import tenants as store


@post("/", summary="Create a tenant and its first client")
async def create_tenant(data: JSONBody[TenantIn], call: Caller, services: Services) -> Response[TenantCreated]:
    """The first client holds every scope of its tenant; its secret is in this answer and nowhere else."""
    refuse(tenant_problems(data, services.catalogue))
    now = services.now()

    async def work(session: AsyncSession) -> TenantCreated:
        row = await store.add(session, Tenant(slug=data.slug, name=data.name or data.slug, settings=data.settings))
        spec = ClientSpec(name=data.client_name, scopes=tuple(sorted(TENANT_SCOPES)))
        registered = await create_client(session, row.id, spec, peppers=services.peppers, now=now)
        await audit.record(
            session, row.id, call.actor, "tenant.create", f"tenant:{row.id}", at=now, detail={"slug": row.slug}
        )
        await audit.record(
            session,
            PLATFORM_TENANT_ID,
            call.actor,
            "tenant.create",
            f"tenant:{row.id}",
            at=now,
            detail={"slug": row.slug},
        )
        client = FirstClient(
            client_id=registered.client.client_id,
            client_secret=registered.secret.reveal() if registered.secret else None,
            scopes=list(registered.client.scopes),
        )
        return TenantCreated(**msgspec.structs.asdict(tenant_out(row)), client=client)

    return await once(
        call,
        services.sessions.platform(),
        TenantCreated,
        work,
        at=now,
        location=lambda body: f"/api/v1/tenants/{body.id}",
        shown_again=_without_secret,
    )


def _without_secret(body: TenantCreated) -> TenantCreated:
    return msgspec.structs.replace(body, client=msgspec.structs.replace(body.client, client_secret=None))


@get("/", summary="List the tenants")
async def list_tenants(services: Services, limit: Limit = None, cursor: Cursor = None) -> Response[TenantPage]:
    """In order of creation."""
    ask = page_ask(limit, cursor)
    async with services.sessions.platform() as session:
        page = cut_page(await store.page(session, ask), ask, key=lambda row: row.id)
    return reply(TenantPage(items=[tenant_out(row) for row in page.items], next_cursor=page.next_cursor))


@get("/{tenant_id:uuid}", summary="Read a tenant")
async def read_tenant(tenant_id: FromPath[UUID], services: Services) -> Response[TenantOut]:
    """With its ETag."""
    async with services.sessions.platform() as session:
        return reply(tenant_out(await store.get(session, tenant_id)))


@patch("/{tenant_id:uuid}", summary="Change or suspend a tenant")
async def change_tenant(
    tenant_id: FromPath[UUID],
    data: JSONBody[TenantPatch],
    call: Caller,
    services: Services,
    if_match: IfMatch = None,
) -> Response[TenantOut]:
    """A suspended tenant's requests are refused, also with tokens that it has got; its data stays."""
    refuse(tenant_name_problems(data.name))
    if data.status == "suspended" and tenant_id == PLATFORM_TENANT_ID:
        raise Conflict(
            "The platform's own tenant cannot be suspended: no operator could undo that.",
            hint="Suspend a tenant of the installation; the list of them: GET /api/v1/tenants.",
        )
    now = services.now()
    async with services.sessions.platform() as session:
        row = await store.get(session, tenant_id, if_match=if_match, for_change=True)
        if data.name is not UNSET:
            row.name = data.name
        if data.status is not UNSET:
            row.status = data.status
        if data.settings is not UNSET:
            row.settings = merge_patch(row.settings, data.settings)
            refuse(settings_problems(row.settings, services.catalogue))
        await store.save(session, row, at=now)
        if data.status == "suspended":
            await _revoke_tokens(session, row.id, at=now)
        detail = {"changed": [name for name, value in msgspec.structs.asdict(data).items() if value is not UNSET]}
        if data.status is not UNSET:
            detail["status"] = [data.status]
        await audit.record(session, row.id, call.actor, "tenant.change", f"tenant:{row.id}", at=now, detail=detail)
    return reply(tenant_out(row))


@delete("/{tenant_id:uuid}", summary="Delete a tenant with everything it owns")
async def delete_tenant(tenant_id: FromPath[UUID], call: Caller, services: Services, if_match: IfMatch = None) -> None:
    """Its data keys go too, and its share if the installation keeps shares: no backup of the database opens then."""
    now = services.now()
    async with services.sessions.platform() as session:
        row = await store.get(session, tenant_id, if_match=if_match, for_change=True)
        await store.remove(session, row, at=now)
        await _revoke_tokens(session, tenant_id, at=now)
        await audit.record(
            session,
            PLATFORM_TENANT_ID,
            call.actor,
            "tenant.delete",
            f"tenant:{tenant_id}",
            at=now,
            detail={"slug": row.slug},
        )
    services.forget(tenant_id)
    if services.custody is not None and services.custody.shares is not None:
        # What fails here, or is killed, stays noted: the job tries it again.
        async for _ in shred_noted(services.sessions, services.custody.shares, services.now, only=tenant_id):
            pass


async def _revoke_tokens(session: AsyncSession, tenant_id: UUID, *, at: datetime) -> None:
    """Refuse every token that the tenant got so far, in the management API too; the note outlives the tenant."""
    until = at + timedelta(seconds=MAX_TOKEN_LIFETIME_S)
    await revoke_key(session, PLATFORM_TENANT_ID, tenant_key(tenant_id), now=at, expires_at=until)


def operators_only(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Let only clients of the platform's own tenant through, whatever scope a token may claim."""
    if not principal_of(connection).is_operator:
        raise NotPermitted("Only operators of the installation may do this.", hint="Use an operator's client.")


def router() -> Router:
    """The router, for operators alone."""
    return Router(
        path="/tenants",
        route_handlers=[create_tenant, list_tenants, read_tenant, change_tenant, delete_tenant],
        guards=[requires(PLATFORM), operators_only],
        tags=["tenants"],
    )
