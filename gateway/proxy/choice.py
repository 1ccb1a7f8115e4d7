"""Which pool serves a request, and whether the token admits it. Pure.

The caller names the pool in the path (`/pools/{name}/v1/…`) or in `x-llm-proxy-pool`. Unnamed, it is the tenant's
default pool if that serves the model and the token reaches it, else the first such pool by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from auth.details import Detail
from gateway.policy.access import Allowed, Denied, judge, may_use_pool
from gateway.proxy.faults import (
    Forbidden,
    NoKeyInRegion,
    NoPoolReached,
    NoSuchDialect,
    NoUsableKey,
    RequestFault,
    UnknownModel,
    UnknownPool,
)
from gateway.proxy.head import NO_WISHES, Wishes
from gateway.proxy.runtime import PoolRuntime, TenantRuntime

_KNOWN_CHOICES = 1024
_MEMBERS = {
    "pools": "the pool",
    "models": "the model",
    "regions": "any region in which the pool has keys",
    "expires_at": "requests at this time any more",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """The pool, the real model ("" for a request without one), and what the token allows there.

    `residency`: the only regions that may serve, empty = any, after token, tenant and request; `priority` the same way.
    `others`: what the token's further objects allow there.
    """

    pool: PoolRuntime
    model: str
    allowed: Allowed
    residency: frozenset[str]
    priority: int
    others: tuple[Choice, ...] = ()


def named_pool(in_path: str | None, wished: str | None) -> str | None:
    """Return the pool that the caller names, None if it leaves the choice. Raises RequestFault if it names two."""
    if in_path is not None and wished is not None and in_path != wished:
        raise RequestFault(
            "The request names two different pools.", hint="Name the pool in the path or in x-llm-proxy-pool, once."
        )
    return in_path if wished is None else wished


def choose_pool(
    tenant: TenantRuntime,
    details: Sequence[Detail],
    *,
    named: str | None,
    wishes: Wishes,
    model: str,
    dialect: str,
    now: float,
) -> Choice:
    """Choose; `model` is the caller's name for it, `now` Unix seconds. Raises the RequestFault to answer with."""
    if details or wishes.residency or wishes.priority is not None:
        return _choose(tenant, details, named=named, wishes=wishes, model=model, dialect=dialect, now=now)
    asked = (named, model, dialect)
    found = tenant.choices.get(asked)
    if found is None:
        found = _choose(tenant, (), named=named, wishes=NO_WISHES, model=model, dialect=dialect, now=now)
        if len(tenant.choices) < _KNOWN_CHOICES:
            tenant.choices[asked] = found
    return found


def _choose(
    tenant: TenantRuntime,
    details: Sequence[Detail],
    *,
    named: str | None,
    wishes: Wishes,
    model: str,
    dialect: str,
    now: float,
) -> Choice:
    if named is not None:
        pool = tenant.pools.get(named)
        if pool is None or not may_use_pool(details, named):
            # One answer for both: a token that does not reach a pool need not learn that it exists.
            raise UnknownPool(
                f"There is no pool {named[:64]!r} for this token.",
                hint=f"Use one of: {_listed(tenant, details)}.",
            )
        if not pool.endpoints:
            if pool.rungs:
                return judged(tenant, pool, details, wishes=wishes, model=model, now=now)
            raise _no_key(pool.name)
        if not serves(pool, model, dialect):
            raise UnknownModel(
                f"No key of pool {named!r} serves the model {model!r} over the {dialect} API.",
                hint="GET /v1/models lists the choices; a key's `models` and `provider` decide what it serves.",
            )
        return judged(tenant, pool, details, wishes=wishes, model=model, now=now)
    reachable = [pool for pool in tenant.pools.values() if may_use_pool(details, pool.name)]
    if tenant.default is not None and tenant.default in reachable:
        reachable.remove(tenant.default)
        reachable.insert(0, tenant.default)
    refusals: list[RequestFault] = []  # popped: what is raised leads to this frame, which must not lead back
    for pool in reachable:
        if serves(pool, model, dialect):
            try:
                return judged(tenant, pool, details, wishes=wishes, model=model, now=now)
            except (Forbidden, NoKeyInRegion) as error:
                refusals.append(error.with_traceback(None))
    if refusals:
        raise refusals.pop(0)
    if not tenant.pools:
        raise NoUsableKey(
            "The tenant has no pool yet.", hint="Create one: POST /api/v1/pools/import, or 'llm-proxy pool import'."
        )
    if not reachable:
        raise NoPoolReached(
            "The access token reaches none of the tenant's pools (authorization_details.pools).",
            hint="Ask whoever issued the token for a wider one.",
        )
    if not any(pool.endpoints for pool in reachable):
        raise _no_key(reachable[0].name)
    if not model:
        raise NoSuchDialect(
            f"No pool of this tenant has a key for the {dialect} API.",
            hint="Name a model, or add a key of a provider that speaks it.",
        )
    raise UnknownModel(
        f"No pool of this tenant serves the model {model!r} over the {dialect} API.",
        hint="GET /v1/models lists the choices; a key's `models` and `provider` decide what it serves.",
    )


def serves(pool: PoolRuntime, model: str, dialect: str) -> bool:
    if not model:
        return any(dialect in endpoint.dialects for endpoint in pool.endpoints)
    return pool.serves(model, dialect)


def judged(
    tenant: TenantRuntime, pool: PoolRuntime, details: Sequence[Detail], *, wishes: Wishes, model: str, now: float
) -> Choice:
    """Return what the token, the tenant and the request allow of `model` in `pool`. Raises Forbidden, NoKeyInRegion."""
    real = pool.real_model(model)
    models = (model, real) if real != model else (model,) if model else ()
    found = judge(details, pool=pool.name, models=models, regions=pool.regions, now=now)
    if isinstance(found, Denied):
        raise Forbidden(
            f"The access token does not allow {_MEMBERS.get(found.member, found.member)} "
            f"(authorization_details.{found.member}).",
            hint="Ask whoever issued the token for a wider one, or change the request.",
        )
    choices: list[Choice] = []
    refusals: list[NoKeyInRegion] = []
    for allowed in found:
        residency = allowed.residency
        if tenant.residency or wishes.residency:
            try:
                residency = _narrowed(tenant, pool, wishes, residency)
            except NoKeyInRegion as error:
                refusals.append(error.with_traceback(None))
                continue
        choices.append(Choice(pool, real, allowed, residency, _priority(allowed, wishes)))
    if refusals and not choices:
        raise refusals.pop(0)
    return choices[0] if len(choices) == 1 else replace(choices[0], others=tuple(choices[1:]))


def _narrowed(tenant: TenantRuntime, pool: PoolRuntime, wishes: Wishes, allowed: frozenset[str]) -> frozenset[str]:
    regions = frozenset(
        region
        for region in allowed or pool.regions
        if (not wishes.residency or wishes.admits(region)) and tenant.admits(region)
    )
    if not regions:
        whose = "x-llm-proxy-residency" if wishes.residency else "the tenant's setting `residency`"
        raise NoKeyInRegion(
            f"No key of pool {pool.name!r} lies in a region that {whose} allows.",
            hint=f"The pool's regions are: {', '.join(sorted(pool.regions)) or 'none; its keys name no region'}.",
        )
    return regions


def _priority(allowed: Allowed, wishes: Wishes) -> int:
    """Give what is asked for, but never more urgent than the token's, which is also what silence means."""
    if wishes.priority is None:
        return allowed.priority
    narrowed = allowed.detail is not None and allowed.detail.priority is not None
    return max(wishes.priority, allowed.priority) if narrowed else wishes.priority


def _no_key(pool: str) -> NoUsableKey:
    return NoUsableKey(
        f"Pool {pool!r} has no usable provider key.", hint="Add one (POST /api/v1/pools/{id}/keys) or enable one."
    )


def _listed(tenant: TenantRuntime, details: Sequence[Detail]) -> str:
    names = [name for name in tenant.pools if may_use_pool(details, name)]
    return ", ".join(names[:20]) or "none: the tenant has no pool that it reaches"
