"""/api/v1/pools/import: a pool and its keys from one file, all or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import msgspec
from litestar import Response, Router, post
from litestar.params import JSONBody
from sqlalchemy.ext.asyncio import AsyncSession

from auth.guards import requires
from auth.scopes import KEYS_WRITE, POOLS_WRITE
from tenants import audit
from tenants.api.call import Caller, once
from tenants.api.new_key import NewKey, seal_new_key, store_new_key
from tenants.api.services import Services
from tenants.api.views import key_out, pool_out
from tenants.checks import fallback_problems, refuse
from tenants.importer import KeyPlan, plan_import
from tenants.models import Pool, Quota, new_id
from tenants.schemas import PoolImported
from tenants.store import pools as store
from tenants.store import quotas


@post("/pools/import", summary="Make a pool from a file", guards=[requires(POOLS_WRITE, KEYS_WRITE)])
async def import_pool(data: JSONBody[dict[str, Any]], call: Caller, services: Services) -> Response[PoolImported]:
    """Takes {"providers": [{"name", "api_key", "weight", "rate_limit"}, …], "strategy", "failover"}.

    `rate_limit` is requests a minute or an object of limits; the provider is told by `provider`, the name or the key.
    Keys of one `quota` share its limits: one of the tenant's by that name, or a new one.
    """
    plan = plan_import(data, services.catalogue)
    now = services.now()
    pool_id = new_id()
    sealed = []
    for each in plan.keys:
        new = NewKey(
            name=each.name,
            provider=each.provider,
            secret=each.secret,
            base_url=each.base_url,
            region=each.region,
            tier=each.tier,
            weight=each.weight,
            models=each.models,
            max_in_flight=each.max_in_flight,
            limits=each.limits,
        )
        sealed.append((new, each.quota, await seal_new_key(services.sealer, call.tenant_id, pool_id, new)))

    async def work(session: AsyncSession) -> PoolImported:
        if plan.settings.fallbacks:
            refuse(fallback_problems(plan.settings, plan.name, await store.names(session, call.tenant_id)))
        pool = await store.add(
            session,
            Pool(
                id=pool_id,
                tenant_id=call.tenant_id,
                name=plan.name,
                strategy=plan.strategy,
                is_default=plan.is_default,
                settings=msgspec.to_builtins(plan.settings),
            ),
        )
        shared = await _shared_quotas(session, call.tenant_id, plan.keys)
        stored = [
            await store_new_key(
                session, pool, replace(new, quota_id=shared[name]) if name is not None else new, envelope, at=now
            )
            for new, name, envelope in sealed
        ]
        detail = {"name": pool.name, "keys": {key.name: version.fingerprint for key, version in stored}}
        await audit.record(session, call.tenant_id, call.actor, "pool.import", f"pool:{pool_id}", at=now, detail=detail)
        keys = [key_out(key, version) for key, version in stored]
        return PoolImported(**msgspec.structs.asdict(pool_out(pool)), keys=keys)

    return await once(
        call,
        services.sessions.tenant(call.tenant_id),
        PoolImported,
        work,
        at=now,
        location=lambda body: f"/api/v1/pools/{body.id}",
    )


async def _shared_quotas(session: AsyncSession, tenant_id: UUID, keys: Sequence[KeyPlan]) -> dict[str, UUID]:
    """Give the ids of the quotas that keys share, by name: those that are there, the others made."""
    found: dict[str, UUID] = {}
    for index, key in enumerate(keys):
        if key.quota is None or key.quota in found:
            continue
        row = await quotas.named(session, tenant_id, key.quota)
        if row is None:
            made = Quota(tenant_id=tenant_id, name=key.quota, provider=key.provider, limits=dict(key.limits))
            row = await quotas.add(session, made)
        elif key.limits and row.limits != key.limits:
            sentence = f"is not what the tenant's quota {key.quota} has: leave it out, or change the quota"
            refuse([(f"/providers/{index}/rate_limit", sentence)])
        found[key.quota] = row.id
    return found


def router() -> Router:
    """The router."""
    return Router(path="/", route_handlers=[import_pool], tags=["pools"])
