"""Answers `GET …/models`: what a token can ask for, from the pools' keys and aliases. Pure.

Only names can be listed: keys that serve every model, or globs, contribute their aliases and model maps alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from auth.details import Detail
from gateway.policy.access import Denied, judge, may_use_pool
from gateway.proxy.faults import UnknownModel, UnknownPool
from gateway.proxy.routes import Dialect
from gateway.proxy.runtime import PoolRuntime, TenantRuntime

_GLOB_CHARS = frozenset("*?[")


def models_of(
    tenant: TenantRuntime, details: Sequence[Detail], *, named: str | None, dialect: Dialect, now: float
) -> dict[str, str]:
    """Return model name → provider, sorted by name, for the named pool or all that the token reaches."""
    if named is not None and (named not in tenant.pools or not may_use_pool(details, named)):
        raise UnknownPool(f"There is no pool {named[:64]!r} for this token.", hint="Leave the pool out to see all.")
    pools = [tenant.pools[named]] if named is not None else tenant.pools.values()
    found: dict[str, str] = {}
    for pool in pools:
        if not may_use_pool(details, pool.name):
            continue
        for model, provider in _offered(pool, dialect):
            names = tuple({model, pool.real_model(model)})
            verdict = judge(details, pool=pool.name, models=names, regions=pool.regions, now=now)
            if not isinstance(verdict, Denied):
                found.setdefault(model, provider)
    return dict(sorted(found.items()))


def list_body(dialect: Dialect, models: dict[str, str]) -> bytes:
    """Return the list in the dialect's shape; there is one page only."""
    if dialect == "anthropic":
        data = [_anthropic(model) for model in models]
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return msgspec.json.encode({"data": data, "has_more": False, "first_id": first, "last_id": last})
    if dialect == "gemini":
        return msgspec.json.encode({"models": [_gemini(model) for model in models]})
    return msgspec.json.encode({"object": "list", "data": [_openai(name, by) for name, by in models.items()]})


def one_body(dialect: Dialect, models: dict[str, str], model: str) -> bytes:
    """Return one model in the dialect's shape. Raises UnknownModel."""
    if model not in models:
        raise UnknownModel(f"The model {model!r} is not offered to this token.", hint="GET /v1/models lists those.")
    if dialect == "anthropic":
        return msgspec.json.encode(_anthropic(model))
    return msgspec.json.encode(_gemini(model) if dialect == "gemini" else _openai(model, models[model]))


def _offered(pool: PoolRuntime, dialect: Dialect) -> Iterable[tuple[str, str]]:
    first: str | None = None
    for endpoint in pool.endpoints:
        if dialect not in endpoint.dialects:
            continue
        first = first or endpoint.provider
        for model in (*endpoint.models, *pool.targets[endpoint.id].model_map):
            if not _GLOB_CHARS.intersection(model) and endpoint.serves(model, dialect):
                yield model, endpoint.provider
    for alias in pool.settings.model_aliases:
        if first is not None and pool.serves(alias, dialect):
            yield alias, first


def _openai(model: str, provider: str) -> dict[str, object]:
    return {"id": model, "object": "model", "created": 0, "owned_by": provider}


def _anthropic(model: str) -> dict[str, object]:
    return {"type": "model", "id": model, "display_name": model, "created_at": "1970-01-01T00:00:00Z"}


def _gemini(model: str) -> dict[str, object]:
    return {"name": f"models/{model}", "displayName": model, "version": "001"}
