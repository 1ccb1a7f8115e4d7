"""Makes keys for pools that are full, and takes them away again: `tenants.provisioning_plan` decides, here it is done.

A new key begins as an intent, which the rotation engine carries out: made by the source, stored, probed, promoted. One
that goes drains first, is revoked at the provider, and only then deleted. So every fault that a rotation survives is
survived here too, and a key is never left at the provider unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from auth.errors import Fault
from auth.storage import Sessions
from tenants import audit
from tenants.api.new_key import NewKey, store_key_of_source
from tenants.audit import Actor
from tenants.lifecycle import ERASED, IN_FLIGHT, VersionState
from tenants.models import KeyVersion, PoolProvisioning, ProviderKey
from tenants.provisioning_plan import (
    LOOK_S,
    Change,
    PoolFacts,
    ProvisioningSettings,
    load_provisioning,
    plan,
    retry_s,
    utilisation,
)
from tenants.rotation_job import Alert, no_alert
from tenants.store import keys, pools, provisioning, quotas, rotations

BATCH: Final = 20
PROVISIONER: Final = Actor("provisioning")
PREFIX: Final = "auto-"

_log = logging.getLogger(__name__)


class Provisioner:
    """Looks at pools that are due; claims keep two of them apart. `now` gives the time with its zone."""

    def __init__(self, sessions: Sessions, *, now: Callable[[], datetime], alert: Alert = no_alert) -> None:
        self._sessions = sessions
        self._now = now
        self._alert = alert

    async def run_once(self) -> int:
        """Look at every pool that is due; returns how many."""
        async with self._sessions.platform() as session:
            claims = await provisioning.claim_looks(session, now=self._now(), again_s=LOOK_S, limit=BATCH)
        for tenant_id, pool_id, fence in claims:
            try:
                async with self._sessions.tenant(tenant_id) as session:
                    failed = await self._look(session, tenant_id, pool_id, fence)
                if failed:
                    self._alert("provisioning.failed", str(pool_id))
            except Exception:  # noqa: BLE001 -- one pool's defect must not stop the others; it is looked at again
                _log.exception("provisioning of pool %s failed", pool_id)
                self._alert("provisioning.defect", str(pool_id))
        return len(claims)

    async def _look(self, session: AsyncSession, tenant_id: UUID, pool_id: UUID, fence: datetime) -> bool:
        """Do what is to be done with one pool; tells whether a person should look at it."""
        now = self._now()
        row = await provisioning.of_pool(session, tenant_id, pool_id, for_change=True)
        if row is None or row.look_at != fence:
            return False  # switched off, changed, or taken over by another process
        settings = load_provisioning(row.settings)
        found = [
            (key, await keys.versions(session, tenant_id, key.id))
            for key in await provisioning.keys_of(session, tenant_id, pool_id)
        ]
        failed = await self._clear(session, row, found, now)
        facts = facts_of(row, found, utilisation(await provisioning.load_of(session, tenant_id, pool_id, now=now)))
        decided = plan(facts, settings, now=now)
        row.busy_since, row.idle_since = decided.busy_since, decided.idle_since
        if failed:
            return True
        if decided.change is Change.GROW:
            return await self._grow(session, row, settings, [key.name for key, _ in found], now)
        if decided.change is Change.RETIRE:
            await self._retire(session, row, found, now)
        return False

    async def _clear(
        self,
        session: AsyncSession,
        row: PoolProvisioning,
        found: list[tuple[ProviderKey, Sequence[KeyVersion]]],
        now: datetime,
    ) -> bool:
        """Delete keys that are gone at the provider; tells whether one of them never came into service."""
        failed = False
        for key, versions in list(found):
            if not key.provisioned or not all(VersionState(version.state) in ERASED for version in versions):
                continue
            if any(version.step_at is not None for version in versions):
                continue  # the engine still has something to clean up at the provider
            was_made = key.retiring_at is not None
            why = versions[0].error or "it did not come into service"
            await quotas.lock_own(session, row.tenant_id, (key.quota_id,))
            await keys.remove(session, key)
            await quotas.remove_unused_own(session, row.tenant_id)
            found.remove((key, versions))
            if not was_made:
                failed = True
                row.failures += 1
                row.error = why[:500]
                row.look_at = now + timedelta(seconds=retry_s(row.failures))
            detail = {"name": key.name} if was_made else {"name": key.name, "why": why[:500]}
            action = "key.delete" if was_made else "pool.grow_failed"
            await audit.record(session, row.tenant_id, PROVISIONER, action, f"key:{key.id}", at=now, detail=detail)
        return failed

    async def _grow(
        self,
        session: AsyncSession,
        row: PoolProvisioning,
        settings: ProvisioningSettings,
        taken: Sequence[str],
        now: datetime,
    ) -> bool:
        source = await rotations.source_of(session, row.tenant_id, row.source_id)
        if source is None:
            raise LookupError("a pool's source cannot be deleted while it is provisioned from it")
        pool = await pools.get(session, row.tenant_id, row.pool_id)
        like = settings.key
        name = next(name for number in range(1, 1000) if (name := f"{PREFIX}{number}") not in taken)
        new = NewKey(
            name=name,
            provider=like.provider,
            secret=None,
            base_url=like.base_url,
            region=like.region,
            tier=like.tier,
            weight=like.weight,
            models=tuple(like.models),
            model_map=like.model_map,
            max_in_flight=like.max_in_flight,
            quota_id=like.quota_id,
            limits=msgspec.to_builtins(like.limits) or {},
        )
        try:
            async with session.begin_nested():
                key, _ = await store_key_of_source(session, pool, new, source, at=now)
                key.provisioned = True
                await session.flush()
        except Fault as error:  # the quota was deleted meanwhile: the tenant's to mend
            row.failures += 1
            row.error = error.public[:500]
            row.look_at = now + timedelta(seconds=retry_s(row.failures))
            return True
        row.changed_at, row.error = now, None
        detail = {"name": name, "pool": pool.name, "source": source.name}
        await audit.record(session, row.tenant_id, PROVISIONER, "pool.grow", f"key:{key.id}", at=now, detail=detail)
        return False

    async def _retire(
        self,
        session: AsyncSession,
        row: PoolProvisioning,
        found: Sequence[tuple[ProviderKey, Sequence[KeyVersion]]],
        now: datetime,
    ) -> None:
        key, versions = next((key, versions) for key, versions in found if _may_retire(key, versions))
        serving = rotations.current(versions)
        if serving is None:
            raise LookupError("a key without a current version is not retired")
        key.retiring_at, row.changed_at = now, now
        key.source_id = row.source_id
        key.rotation = {**key.rotation, "retain_s": 0}
        key.rotation.pop("schedule", None)
        key.due_at = None
        await keys.move(session, serving, VersionState.DRAINING, at=now)
        serving.step_at = now
        await session.flush()
        detail = {"name": key.name}
        await audit.record(session, row.tenant_id, PROVISIONER, "pool.shrink", f"key:{key.id}", at=now, detail=detail)


def facts_of(
    row: PoolProvisioning, found: Sequence[tuple[ProviderKey, Sequence[KeyVersion]]], used: float
) -> PoolFacts:
    """Count a pool's keys: those that serve, those that come or go, those that may be retired."""
    serving = [key for key, versions in found if key.enabled and rotations.current(versions) is not None]
    moving = [
        key
        for key, versions in found
        if (key.provisioned and key not in serving)
        or (key.provisioned and any(VersionState(version.state) in IN_FLIGHT for version in versions))
    ]
    return PoolFacts(
        serving=len(serving),
        moving=len(moving),
        retirable=sum(_may_retire(key, versions) for key, versions in found),
        utilisation=used,
        busy_since=row.busy_since,
        idle_since=row.idle_since,
        changed_at=row.changed_at,
    )


def _may_retire(key: ProviderKey, versions: Sequence[KeyVersion]) -> bool:
    return (
        key.provisioned
        and key.enabled
        and rotations.current(versions) is not None
        and not any(VersionState(version.state) in IN_FLIGHT for version in versions)
    )
