"""/api/v1/pools/{pool_id}/keys and /api/v1/keys: provider keys, which go in and never come out."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from litestar import Response, Router, delete, get, patch, post
from litestar.params import FromPath, JSONBody
from msgspec import UNSET
from sqlalchemy.ext.asyncio import AsyncSession

from auth.guards import requires
from auth.paging import cut_page, page_ask
from auth.scopes import KEYS_READ, KEYS_WRITE
from auth.secret import Secret
from tenants import audit
from tenants.api.call import Caller, Cursor, IfMatch, Limit, once, reply
from tenants.api.new_key import NewKey, check_quota_provider, seal_new_key, store_key_of_source, store_new_key
from tenants.api.services import Services
from tenants.api.views import key_out, version_out
from tenants.checks import key_problems, refuse
from tenants.lifecycle import VersionState
from tenants.models import ProviderKey
from tenants.schemas import KeyIn, KeyOut, KeyPage, KeyPatch, VersionList
from tenants.store import keys as store
from tenants.store import pools as pools_store
from tenants.store import quotas as quotas_store
from tenants.store import rotations as rotations_store


@post("/pools/{pool_id:uuid}/keys", summary="Add a provider key to a pool", guards=[requires(KEYS_WRITE)])
async def create_key(
    pool_id: FromPath[UUID], data: JSONBody[KeyIn], call: Caller, services: Services
) -> Response[KeyOut]:
    """The secret is sealed before it is stored; afterwards a prefix and a fingerprint tell it apart.

    With `source_id` the source makes it: `current` is null until it was made and probed.
    """
    refuse(key_problems(data, services.catalogue))
    now = services.now()
    new = NewKey(
        name=data.name,
        provider=data.provider,
        secret=None if data.api_key is None else Secret(data.api_key),
        base_url=data.base_url,
        region=data.region,
        tier=data.tier,
        weight=data.weight,
        models=tuple(data.models),
        model_map=data.model_map,
        max_in_flight=data.max_in_flight,
        enabled=data.enabled,
        quota_id=data.quota_id,
        limits=msgspec.to_builtins(data.limits) or {},
    )
    sealed = None if new.secret is None else await seal_new_key(services.sealer, call.tenant_id, pool_id, new)

    async def work(session: AsyncSession) -> KeyOut:
        pool = await pools_store.get(session, call.tenant_id, pool_id)
        detail = {"name": new.name, "pool": pool.name}
        if sealed is None:
            source = await rotations_store.need_source(session, call.tenant_id, data.source_id)
            if source is None:
                raise LookupError("a key has a secret or a source")
            key, version = await store_key_of_source(session, pool, new, source, at=now)
            detail["source"] = source.name
        else:
            key, version = await store_new_key(session, pool, new, sealed, at=now)
            detail["fingerprint"] = version.fingerprint
        await audit.record(session, call.tenant_id, call.actor, "key.create", f"key:{key.id}", at=now, detail=detail)
        return key_out(key, version if version.state == VersionState.CURRENT else None)

    return await once(
        call,
        services.sessions.tenant(call.tenant_id),
        KeyOut,
        work,
        at=now,
        location=lambda body: f"/api/v1/keys/{body.id}",
    )


@get("/pools/{pool_id:uuid}/keys", summary="List the keys of a pool", guards=[requires(KEYS_READ)])
async def list_keys(
    pool_id: FromPath[UUID], call: Caller, services: Services, limit: Limit = None, cursor: Cursor = None
) -> Response[KeyPage]:
    """In order of creation."""
    ask = page_ask(limit, cursor)
    async with services.sessions.tenant(call.tenant_id) as session:
        await pools_store.get(session, call.tenant_id, pool_id)
        rows = await store.page(session, call.tenant_id, ask, pool_id=pool_id)
        page = cut_page(rows, ask, key=lambda row: row.id)
        current = await store.current_of(session, call.tenant_id, (row.id for row in page.items))
    items = [key_out(row, current.get(row.id)) for row in page.items]
    return reply(KeyPage(items=items, next_cursor=page.next_cursor))


@get("/keys/{key_id:uuid}", summary="Read a key", guards=[requires(KEYS_READ)])
async def read_key(key_id: FromPath[UUID], call: Caller, services: Services) -> Response[KeyOut]:
    """Without its secret."""
    async with services.sessions.tenant(call.tenant_id) as session:
        return reply(await shown_key(session, await store.get(session, call.tenant_id, key_id)))


@get("/keys/{key_id:uuid}/versions", summary="List a key's versions", guards=[requires(KEYS_READ)])
async def list_versions(key_id: FromPath[UUID], call: Caller, services: Services) -> Response[VersionList]:
    """The newest first."""
    async with services.sessions.tenant(call.tenant_id) as session:
        await store.get(session, call.tenant_id, key_id)
        rows = await store.versions(session, call.tenant_id, key_id)
    return reply(VersionList(items=[version_out(row) for row in rows]))


@patch("/keys/{key_id:uuid}", summary="Change a key", guards=[requires(KEYS_WRITE)])
async def change_key(
    key_id: FromPath[UUID],
    data: JSONBody[KeyPatch],
    call: Caller,
    services: Services,
    if_match: IfMatch = None,
) -> Response[KeyOut]:
    """All but the secret and the base URL, which change by rotation."""
    refuse(key_problems(data, services.catalogue))
    now = services.now()
    async with services.sessions.tenant(call.tenant_id) as session:
        row = await store.get(session, call.tenant_id, key_id, if_match=if_match, for_change=True)
        changes: dict[str, Any] = {
            name: value for name, value in msgspec.structs.asdict(data).items() if value is not UNSET
        }
        if "quota_id" in changes:
            await quotas_store.lock_own(session, call.tenant_id, (row.quota_id, changes["quota_id"]))
            check_quota_provider(await quotas_store.get(session, call.tenant_id, changes["quota_id"]), row.provider)
        for name, value in changes.items():
            setattr(row, name, value)
        await store.save(session, row, at=now)
        if "quota_id" in changes:
            await quotas_store.remove_unused_own(session, call.tenant_id)
        shown = await shown_key(session, row)
        detail = {"name": row.name, "changed": sorted(changes)}
        await audit.record(session, call.tenant_id, call.actor, "key.change", f"key:{key_id}", at=now, detail=detail)
    return reply(shown)


@delete("/keys/{key_id:uuid}", summary="Delete a key", guards=[requires(KEYS_WRITE)])
async def delete_key(key_id: FromPath[UUID], call: Caller, services: Services, if_match: IfMatch = None) -> None:
    """The key at the provider is not touched: revoke it there."""
    now = services.now()
    async with services.sessions.tenant(call.tenant_id) as session:
        row = await store.get(session, call.tenant_id, key_id, if_match=if_match, for_change=True)
        await quotas_store.lock_own(session, call.tenant_id, (row.quota_id,))
        await store.remove(session, row)
        await quotas_store.remove_unused_own(session, call.tenant_id)
        await audit.record(
            session, call.tenant_id, call.actor, "key.delete", f"key:{key_id}", at=now, detail={"name": row.name}
        )


async def shown_key(session: AsyncSession, row: ProviderKey) -> KeyOut:
    """Show a key with its current version."""
    current = await store.current_of(session, row.tenant_id, [row.id])
    return key_out(row, current.get(row.id))


def router() -> Router:
    """The router."""
    return Router(
        path="/",
        route_handlers=[create_key, list_keys, read_key, list_versions, change_key, delete_key],
        tags=["keys"],
    )
