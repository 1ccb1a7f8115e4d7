"""/api/v1/quotas: what providers limit."""

from __future__ import annotations

from uuid import UUID

import msgspec
from litestar import Response, Router, delete, get, patch, post
from litestar.params import FromPath, JSONBody
from msgspec import UNSET
from sqlalchemy.ext.asyncio import AsyncSession

from auth.guards import requires
from auth.paging import cut_page, page_ask
from auth.scopes import POOLS_READ, POOLS_WRITE
from tenants import audit
from tenants.api.call import Caller, Cursor, IfMatch, Limit, once, reply
from tenants.api.services import Services
from tenants.api.views import belief_out, quota_out
from tenants.checks import convert_checked, quota_problems, refuse
from tenants.merge_patch import merge_patch
from tenants.models import Quota
from tenants.pool_schemas import Limits
from tenants.schemas import BeliefList, QuotaIn, QuotaOut, QuotaPage, QuotaPatch
from tenants.store import quotas as store


@post("/", summary="Create a quota", guards=[requires(POOLS_WRITE)])
async def create_quota(data: JSONBody[QuotaIn], call: Caller, services: Services) -> Response[QuotaOut]:
    """Keys of one organisation, project or deployment share one quota."""
    refuse(quota_problems(data, services.catalogue))
    now = services.now()

    async def work(session: AsyncSession) -> QuotaOut:
        row = await store.add(
            session,
            Quota(
                tenant_id=call.tenant_id,
                name=data.name,
                provider=data.provider,
                limits=msgspec.to_builtins(data.limits),
            ),
        )
        await audit.record(
            session, call.tenant_id, call.actor, "quota.create", f"quota:{row.id}", at=now, detail={"name": row.name}
        )
        return quota_out(row)

    return await once(
        call,
        services.sessions.tenant(call.tenant_id),
        QuotaOut,
        work,
        at=now,
        location=lambda body: f"/api/v1/quotas/{body.id}",
    )


@get("/", summary="List the quotas", guards=[requires(POOLS_READ)])
async def list_quotas(
    call: Caller, services: Services, limit: Limit = None, cursor: Cursor = None
) -> Response[QuotaPage]:
    """In order of creation."""
    ask = page_ask(limit, cursor)
    async with services.sessions.tenant(call.tenant_id) as session:
        page = cut_page(await store.page(session, call.tenant_id, ask), ask, key=lambda row: row.id)
    return reply(QuotaPage(items=[quota_out(row) for row in page.items], next_cursor=page.next_cursor))


@get("/{quota_id:uuid}", summary="Read a quota", guards=[requires(POOLS_READ)])
async def read_quota(quota_id: FromPath[UUID], call: Caller, services: Services) -> Response[QuotaOut]:
    """With its ETag."""
    async with services.sessions.tenant(call.tenant_id) as session:
        return reply(quota_out(await store.get(session, call.tenant_id, quota_id)))


@get("/{quota_id:uuid}/beliefs", summary="Read what was learned of a quota's limiters", guards=[requires(POOLS_READ)])
async def read_beliefs(quota_id: FromPath[UUID], call: Caller, services: Services) -> Response[BeliefList]:
    """By model family ("" where all share one limit): limits in force and wrong ones, and how wrong beliefs were.

    As of the last minute; empty until the first requests.
    """
    async with services.sessions.tenant(call.tenant_id) as session:
        await store.get(session, call.tenant_id, quota_id)
        rows = await store.beliefs(session, call.tenant_id, quota_id)
        return reply(BeliefList([belief_out(row) for row in rows]))


@patch("/{quota_id:uuid}", summary="Change a quota", guards=[requires(POOLS_WRITE)])
async def change_quota(
    quota_id: FromPath[UUID],
    data: JSONBody[QuotaPatch],
    call: Caller,
    services: Services,
    if_match: IfMatch = None,
) -> Response[QuotaOut]:
    """Limits are merged member by member; null removes one."""
    refuse(quota_problems(data, services.catalogue))
    now = services.now()
    async with services.sessions.tenant(call.tenant_id) as session:
        row = await store.get(session, call.tenant_id, quota_id, if_match=if_match, for_change=True)
        if data.name is not UNSET:
            row.name = data.name
        if data.limits is not UNSET:
            limits = convert_checked(merge_patch(row.limits, data.limits), Limits, "/limits")
            row.limits = msgspec.to_builtins(limits)
        await store.save(session, row, at=now)
        await audit.record(
            session,
            call.tenant_id,
            call.actor,
            "quota.change",
            f"quota:{row.id}",
            at=now,
            detail={"limits": row.limits, "name": row.name},
        )
    return reply(quota_out(row))


@delete("/{quota_id:uuid}", summary="Delete a quota", guards=[requires(POOLS_WRITE)])
async def delete_quota(quota_id: FromPath[UUID], call: Caller, services: Services, if_match: IfMatch = None) -> None:
    """Refused while keys draw on it."""
    now = services.now()
    async with services.sessions.tenant(call.tenant_id) as session:
        row = await store.get(session, call.tenant_id, quota_id, if_match=if_match, for_change=True)
        await store.remove(session, row)
        await audit.record(
            session, call.tenant_id, call.actor, "quota.delete", f"quota:{quota_id}", at=now, detail={"name": row.name}
        )


def router() -> Router:
    """The router."""
    return Router(
        path="/quotas",
        route_handlers=[create_quota, list_quotas, read_quota, read_beliefs, change_quota, delete_quota],
        tags=["quotas"],
    )
