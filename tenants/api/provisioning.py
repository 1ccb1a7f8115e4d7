"""/api/v1/pools/{id}/provisioning: whether a pool gets keys by itself. Off until it is set."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from litestar import Response, Router, delete, get, put
from litestar.params import FromPath, JSONBody
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncSession

from auth.errors import Invalid, NotFound
from auth.etag import check_if_match
from auth.guards import requires
from auth.scopes import KEYS_READ, KEYS_ROTATE
from tenants import audit
from tenants.api.call import Caller, IfMatch, reply
from tenants.api.new_key import check_quota_provider
from tenants.api.services import Services
from tenants.checks import convert_checked, refuse
from tenants.models import PoolProvisioning
from tenants.provisioning import facts_of
from tenants.provisioning_plan import ProvisioningSettings, load_provisioning, settings_problems, utilisation
from tenants.sources.registry import makes_many
from tenants.store import keys, pools, quotas, rotations
from tenants.store import provisioning as store


class ProvisioningIn(Struct, frozen=True, forbid_unknown_fields=True):
    """The source that makes the keys, and how far the pool may grow."""

    source_id: UUID
    settings: dict[str, Any]


class ProvisioningOut(Struct, frozen=True):
    """What was set, and how the pool stands; `utilisation` of the last minute, 1: full."""

    source_id: UUID
    settings: ProvisioningSettings
    serving: int
    moving: int
    utilisation: float
    busy_since: datetime | None
    idle_since: datetime | None
    changed_at: datetime | None
    failures: int
    error: str | None
    version: int


@put("/{pool_id:uuid}/provisioning", summary="Let a pool grow by itself", guards=[requires(KEYS_ROTATE)])
async def set_provisioning(
    pool_id: FromPath[UUID],
    data: JSONBody[ProvisioningIn],
    call: Caller,
    services: Services,
    if_match: IfMatch = None,
) -> Response[ProvisioningOut]:
    """New keys are made as `settings.key` says, and only they are ever taken away again."""
    settings = convert_checked(data.settings, ProvisioningSettings, "/settings")
    problems = [(f"/settings{pointer}", sentence) for pointer, sentence in settings_problems(settings)]
    if trouble := services.catalogue.provider_problem(settings.key.provider, settings.key.base_url):
        problems.append((f"/settings/key/{trouble[0]}", trouble[1]))
    refuse(problems)
    now = services.now()
    async with services.sessions.tenant(call.tenant_id) as session:
        pool = await pools.get(session, call.tenant_id, pool_id, for_change=True)
        source = await rotations.need_source(session, call.tenant_id, data.source_id)
        if source is None or not makes_many(source.driver):
            raise Invalid(
                "The source cannot make any number of keys.",
                hint="Choose a source of openai, openrouter, xai, gcp or webhook.",
                errors=(("/source_id", "is of a driver that makes no keys, or two at most"),),
            )
        if settings.key.quota_id is not None:
            quota = await quotas.get(session, call.tenant_id, settings.key.quota_id)
            check_quota_provider(quota, settings.key.provider)
        row = await store.of_pool(session, call.tenant_id, pool_id, for_change=True)
        check_if_match(if_match, 0 if row is None else row.version)
        if row is None:
            row = PoolProvisioning(pool_id=pool_id, tenant_id=call.tenant_id, source_id=source.id, look_at=now)
            session.add(row)
        else:
            row.version += 1
        row.source_id, row.settings = source.id, msgspec.to_builtins(settings)
        row.look_at, row.failures, row.error, row.updated_at = now, 0, None, now
        await session.flush()
        shown = await _shown(session, row, now)
        detail = {"name": pool.name, "source": source.name, "max_keys": settings.max_keys}
        subject = f"pool:{pool_id}"
        await audit.record(session, call.tenant_id, call.actor, "provisioning.set", subject, at=now, detail=detail)
    return reply(shown)


@get("/{pool_id:uuid}/provisioning", summary="Read how a pool grows by itself", guards=[requires(KEYS_READ)])
async def read_provisioning(pool_id: FromPath[UUID], call: Caller, services: Services) -> Response[ProvisioningOut]:
    """404 while it is off."""
    async with services.sessions.tenant(call.tenant_id) as session:
        await pools.get(session, call.tenant_id, pool_id)
        return reply(await _shown(session, await _need(session, call.tenant_id, pool_id), services.now()))


@delete("/{pool_id:uuid}/provisioning", summary="Let a pool be as it is", guards=[requires(KEYS_ROTATE)])
async def end_provisioning(pool_id: FromPath[UUID], call: Caller, services: Services) -> None:
    """The keys that were made stay; one that is on its way in or out gets there."""
    now = services.now()
    async with services.sessions.tenant(call.tenant_id) as session:
        pool = await pools.get(session, call.tenant_id, pool_id, for_change=True)
        await session.delete(await _need(session, call.tenant_id, pool_id))
        await session.flush()
        subject, detail = f"pool:{pool_id}", {"name": pool.name}
        await audit.record(session, call.tenant_id, call.actor, "provisioning.end", subject, at=now, detail=detail)


async def _need(session: AsyncSession, tenant_id: UUID, pool_id: UUID) -> PoolProvisioning:
    row = await store.of_pool(session, tenant_id, pool_id, for_change=True)
    if row is None:
        raise NotFound("The pool does not grow by itself.", hint="Switch it on: PUT /api/v1/pools/{id}/provisioning.")
    return row


async def _shown(session: AsyncSession, row: PoolProvisioning, now: datetime) -> ProvisioningOut:
    found = [
        (key, await keys.versions(session, row.tenant_id, key.id))
        for key in await store.keys_of(session, row.tenant_id, row.pool_id)
    ]
    used = utilisation(await store.load_of(session, row.tenant_id, row.pool_id, now=now))
    facts = facts_of(row, found, used)
    return ProvisioningOut(
        source_id=row.source_id,
        settings=load_provisioning(row.settings),
        serving=facts.serving,
        moving=facts.moving,
        utilisation=round(used, 4),
        busy_since=row.busy_since,
        idle_since=row.idle_since,
        changed_at=row.changed_at,
        failures=row.failures,
        error=row.error,
        version=row.version,
    )


def router() -> Router:
    """The router."""
    return Router(
        path="/pools", route_handlers=[set_provisioning, read_provisioning, end_provisioning], tags=["provisioning"]
    )
