"""The time around a promotion: the old version drains, and takes over again when the provider refuses the new one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from auth.storage import Sessions
from tenants import audit
from tenants.lifecycle import VersionState
from tenants.models import KeyVersion
from tenants.rotation_commands import roll_back
from tenants.rotation_job import ENGINE, Alert, Desk, Job, timed
from tenants.rotation_plan import REFUSALS, WATCH_S, look_s, watch_s
from tenants.rotation_trial import Trial
from tenants.store import drains, keys, rotations


class Watch:
    """Steps of draining and current versions; `now` gives the time with its zone."""

    def __init__(
        self, sessions: Sessions, desk: Desk, trial: Trial, *, now: Callable[[], datetime], alert: Alert
    ) -> None:
        self._sessions = sessions
        self._desk = desk
        self._trial = trial
        self._now = now
        self._alert = alert

    async def look(self, job: Job) -> None:
        """End the drain when every serving process has said that nothing is under way on it, else look again later."""
        now, since = self._now(), job.version.state_changed_at
        async with self._sessions.platform() as session:
            quiet = await drains.is_quiet(session, job.version)
        if quiet:
            await self.disable(job)
            return
        deadline = since + timedelta(seconds=job.settings.drain_s)
        await self._desk.settle(job, None, until=min(deadline, now + timedelta(seconds=look_s(now - since))))

    async def disable(self, job: Job) -> None:
        if job.driver is not None and job.driver.capabilities.disables and job.version.provider_ref:
            await timed(job.driver.disable(job.version.provider_ref))
        await self._desk.settle(job, VersionState.DISABLED, after_s=job.settings.retain_s)

    async def again(self, job: Job, *, refusals: int = 0) -> None:
        now = self._now()
        async with self._sessions.tenant(job.claim.tenant_id) as session:
            version = await rotations.held(session, job.claim)
            version.successes, version.attempts = max(version.successes, 1), refusals
            back = rotations.fallback(job.others)
            wait_s = WATCH_S if refusals else None
            if back is not None and wait_s is None:
                draining = back.state == VersionState.DRAINING
                wait_s = watch_s(now - version.state_changed_at, drains=draining)
            version.step_at = None if back is None or wait_s is None else now + timedelta(seconds=wait_s)

    async def watch(self, job: Job) -> None:
        """Try the current version; a predecessor that is taken while it is refused comes back."""
        if await self._trial.of(job, job.version) != "refused":
            await self.again(job, refusals=0)
            return
        back = rotations.fallback(job.others)
        if job.version.attempts + 1 < REFUSALS or back is None or not await self._comes_back(job, back):
            await self.again(job, refusals=job.version.attempts + 1)
            return
        now = self._now()
        async with self._sessions.tenant(job.claim.tenant_id) as session:
            version = await rotations.held(session, job.claim)
            versions = await keys.versions(session, version.tenant_id, version.key_id)
            served = await roll_back(session, versions, job.settings, at=now)
            version.error = "the provider refused it after it was promoted"
            key = await keys.get(session, job.claim.tenant_id, version.key_id)
            key.failures += 1
            detail = {"name": key.name, "number": served.number, "refused": version.number}
            await audit.record(session, key.tenant_id, ENGINE, "key.rollback", f"key:{key.id}", at=now, detail=detail)
        self._alert("rotation.rolled_back", str(job.key.id))

    async def _comes_back(self, job: Job, back: KeyVersion) -> bool:
        """Tell whether the provider takes an earlier version, which is enabled for that when it is not.

        Its old drain's step may disable it at the same moment: it holds another claim, and whoever commits first wins.
        """
        ref = back.provider_ref
        switches = back.state == VersionState.DISABLED and ref is not None
        if job.driver is None or ref is None or not switches or not job.driver.capabilities.disables:
            return await self._trial.of(job, back) == "works"
        await timed(job.driver.enable(ref))
        works = await self._trial.of(job, back) == "works"
        if not works:
            await timed(job.driver.disable(ref))
        return works
