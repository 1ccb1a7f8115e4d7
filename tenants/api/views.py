"""Rows as the API shows them. No function here can reach a secret. Pure."""

from __future__ import annotations

import msgspec

from tenants.models import KeyVersion, LimiterBelief, Pool, ProviderKey, Quota, Tenant
from tenants.schemas import BeliefOut, KeyOut, PoolOut, QuotaOut, TenantOut, VersionOut


def tenant_out(row: Tenant) -> TenantOut:
    """Show a tenant."""
    return TenantOut(
        id=row.id,
        slug=row.slug,
        name=row.name,
        status=row.status,
        settings=row.settings,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def pool_out(row: Pool) -> PoolOut:
    """Show a pool."""
    return PoolOut(
        id=row.id,
        name=row.name,
        strategy=row.strategy,
        is_default=row.is_default,
        settings=row.settings,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def quota_out(row: Quota) -> QuotaOut:
    """Show a quota."""
    return QuotaOut(
        id=row.id,
        name=row.name,
        provider=row.provider,
        limits=row.limits,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def belief_out(row: LimiterBelief) -> BeliefOut:
    """Show what was learned of a limiter."""
    return msgspec.convert({"family": row.family, "updated_at": row.updated_at, **row.report}, BeliefOut)


def version_out(row: KeyVersion) -> VersionOut:
    """Show a key version by prefix and fingerprint."""
    return VersionOut(
        id=row.id,
        number=row.number,
        state=row.state,
        prefix=row.prefix,
        fingerprint=row.fingerprint,
        created_at=row.created_at,
        state_changed_at=row.state_changed_at,
        step_at=row.step_at,
        provider_ref=row.provider_ref,
        error=row.error,
    )


def key_out(row: ProviderKey, current: KeyVersion | None) -> KeyOut:
    """Show a key with its current version."""
    return KeyOut(
        id=row.id,
        pool_id=row.pool_id,
        quota_id=row.quota_id,
        name=row.name,
        provider=row.provider,
        base_url=row.base_url,
        region=row.region,
        tier=row.tier,
        weight=row.weight,
        models=row.models,
        model_map=row.model_map,
        max_in_flight=row.max_in_flight,
        enabled=row.enabled,
        current=None if current is None else version_out(current),
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
