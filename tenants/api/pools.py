"""/api/v1/pools: keys that serve together."""

from __future__ import annotations

from uuid import UUID

import msgspec
from litestar import Response, Router, delete, get, patch, post
from litestar.params import FromPath, JSONBody
from msgspec import UNSET
from sqlalchemy.ext.asyncio import AsyncSession

from auth.errors import Conflict
from auth.guards import requires
from auth.paging import cut_page, page_ask
from auth.scopes import POOLS_READ, POOLS_WRITE
from tenants import audit
from tenants.api.call import Caller, Cursor, IfMatch, Limit, once, reply
from tenants.api.services import Services
from tenants.api.views import pool_out
from tenants.checks import convert_checked, fallback_problems, pool_problems, refuse
from tenants.merge_patch import merge_patch
from tenants.models import Pool
from tenants.pool_schemas import PoolSettings
from tenants.schemas import PoolIn, PoolOut, PoolPage, PoolPatch
from tenants.store import pools as store
from tenants.store import quotas as quotas_store


@post("/", summary="Create a pool", guards=[requires(POOLS_WRITE)])
async def create_pool(data: JSONBody[PoolIn], call: Caller, services: Services) -> Response[PoolOut]:
    """A tenant's first pool is its default: it serves callers that name no pool."""
    refuse(pool_problems(data, services.catalogue))
    now = services.now()
    strategy = services.catalogue.strategies[data.strategy or services.catalogue.default_strategy]

    async def work(session: AsyncSession) -> PoolOut:
        await _check_fallbacks(session, call.tenant_id, data.settings, data.name)
        row = await store.add(
            session,
            Pool(
                tenant_id=call.tenant_id,
                name=data.name,
                strategy=strategy,
                is_default=data.is_default,
                settings=msgspec.to_builtins(data.settings),
            ),
        )
        await audit.record(
            session, call.tenant_id, call.actor, "pool.create", f"pool:{row.id}", at=now, detail={"name": row.name}
        )
        return pool_out(row)

    return await once(
        call,
        services.sessions.tenant(call.tenant_id),
        PoolOut,
        work,
        at=now,
        location=lambda body: f"/api/v1/pools/{body.id}",
    )


@get("/", summary="List the pools", guards=[requires(POOLS_READ)])
async def list_pools(
    call: Caller, services: Services, limit: Limit = None, cursor: Cursor = None
) -> Response[PoolPage]:
    """In order of creation."""
    ask = page_ask(limit, cursor)
    async with services.sessions.tenant(call.tenant_id) as session:
        page = cut_page(await store.page(session, call.tenant_id, ask), ask, key=lambda row: row.id)
    return reply(PoolPage(items=[pool_out(row) for row in page.items], next_cursor=page.next_cursor))


@get("/{pool_id:uuid}", summary="Read a pool", guards=[requires(POOLS_READ)])
async def read_pool(pool_id: FromPath[UUID], call: Caller, services: Services) -> Response[PoolOut]:
    """With its ETag."""
    async with services.sessions.tenant(call.tenant_id) as session:
        return reply(pool_out(await store.get(session, call.tenant_id, pool_id)))


@patch("/{pool_id:uuid}", summary="Change a pool", guards=[requires(POOLS_WRITE)])
async def change_pool(
    pool_id: FromPath[UUID],
    data: JSONBody[PoolPatch],
    call: Caller,
    services: Services,
    if_match: IfMatch = None,
) -> Response[PoolOut]:
    """Settings are merged member by member; null removes one. Every process uses them within a second."""
    refuse(pool_problems(data, services.catalogue))
    now = services.now()
    async with services.sessions.tenant(call.tenant_id) as session:
        if data.is_default is True or data.name is not UNSET:
            await store.lock_all(session, call.tenant_id)
        row = await store.get(session, call.tenant_id, pool_id, if_match=if_match, for_change=True)
        if data.is_default is False and row.is_default:
            raise Conflict(
                "A tenant always has a default pool.",
                hint="Make another pool the default instead; this one then stops.",
            )
        if data.name is not UNSET and data.name != row.name:
            for other in await store.falling_back_to(session, row):
                rungs = [
                    {**rung, "pool": data.name} if rung.get("pool") == row.name else rung
                    for rung in other.settings["fallbacks"]
                ]
                other.settings = {**other.settings, "fallbacks": rungs}
                await store.save(session, other, at=now)
            row.name = data.name
        if data.strategy is not UNSET:
            row.strategy = services.catalogue.strategies[data.strategy]
        if data.settings is not UNSET:
            settings = convert_checked(merge_patch(row.settings, data.settings), PoolSettings, "/settings")
            await _check_fallbacks(session, call.tenant_id, settings, row.name)
            row.settings = msgspec.to_builtins(settings)
        await store.save(session, row, at=now, becomes_default=data.is_default is True and not row.is_default)
        await audit.record(
            session,
            call.tenant_id,
            call.actor,
            "pool.change",
            f"pool:{row.id}",
            at=now,
            detail={"changed": [name for name, value in msgspec.structs.asdict(data).items() if value is not UNSET]},
        )
    return reply(pool_out(row))


@delete("/{pool_id:uuid}", summary="Delete a pool with its keys", guards=[requires(POOLS_WRITE)])
async def delete_pool(pool_id: FromPath[UUID], call: Caller, services: Services, if_match: IfMatch = None) -> None:
    """Keys at the provider are not touched: revoke them there."""
    now = services.now()
    async with services.sessions.tenant(call.tenant_id) as session:
        await store.lock_all(session, call.tenant_id)
        row = await store.get(session, call.tenant_id, pool_id, if_match=if_match, for_change=True)
        if others := await store.falling_back_to(session, row):
            raise Conflict(
                f"Pool {others[0].name!r} falls back to this one.",
                hint="Take it out of settings.fallbacks there first, or delete that pool.",
            )
        await store.lock_whole(session, row)
        drawn_on = await quotas_store.drawn_on_by(session, call.tenant_id, pool_id)
        await quotas_store.lock_own(session, call.tenant_id, drawn_on)
        await store.remove(session, row)
        await quotas_store.remove_unused_own(session, call.tenant_id)
        await audit.record(
            session, call.tenant_id, call.actor, "pool.delete", f"pool:{pool_id}", at=now, detail={"name": row.name}
        )


async def _check_fallbacks(session: AsyncSession, tenant_id: UUID, settings: PoolSettings, own: str) -> None:
    if settings.fallbacks:
        refuse(fallback_problems(settings, own, await store.names(session, tenant_id)))


def router() -> Router:
    """The router."""
    return Router(
        path="/pools",
        route_handlers=[create_pool, list_pools, read_pool, change_pool, delete_pool],
        tags=["pools"],
    )
