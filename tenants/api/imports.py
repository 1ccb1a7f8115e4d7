"""/api/v1/pools/import: a pool and its keys from one file, all or nothing."""

from __future__ import annotations

from typing import Any

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
from tenants.importer import plan_import
from tenants.models import Pool, new_id
from tenants.schemas import PoolImported
from tenants.store import pools as store


@post("/pools/import", summary="Make a pool from a file", guards=[requires(POOLS_WRITE, KEYS_WRITE)])
async def import_pool(data: JSONBody[dict[str, Any]], call: Caller, services: Services) -> Response[PoolImported]:
    """Takes {"providers": [{"name", "api_key", "weight", "rate_limit"}, …], "strategy", "failover"}.

    `rate_limit` is requests a minute or an object of limits; the provider is told by `provider`, the name or the key.
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
        sealed.append((new, await seal_new_key(services.sealer, call.tenant_id, pool_id, new)))

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
        stored = [await store_new_key(session, pool, new, envelope, at=now) for new, envelope in sealed]
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


def router() -> Router:
    """The router."""
    return Router(path="/", route_handlers=[import_pool], tags=["pools"])
