"""The time around a promotion: the old version drains, and takes over again when the provider refuses the new one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from uuid_utils.compat import uuid7

from auth.errors import Unavailable
from auth.storage import Sessions
from tenants import audit
from tenants.lifecycle import VersionState
from tenants.models import KeyVersion
from tenants.rotation_commands import roll_back
from tenants.rotation_job import ENGINE, Alert, Desk, Job, timed
from tenants.rotation_plan import (
    CHECK_AGAIN_S,
    CHECK_S,
    CHECKS_FAILED,
    REFUSALS,
    WATCH_S,
    look_s,
    tag_of,
    watch_s,
)
from tenants.rotation_trial import Trial
from tenants.sources.federated import FederatedDriver
from tenants.sources.protocol import SourceAway, SourceRefused
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

    async def check(self, job: Job, driver: FederatedDriver) -> None:
        """See whether the provider still gives tokens for a key without a secret, and takes them.

        Every process that serves does it for itself and keeps what it has until its end; here is who tells a person.
        """
        why: str | None = None
        try:
            made = await timed(driver.create(tag_of(uuid7()), in_use=None))
            if (
                made.secret is None
                or await self._trial.of_secret(job, made.secret, federation=driver.provider) == "refused"
            ):
                why = "the provider gives a token and then refuses it"
        except (SourceAway, SourceRefused, Unavailable, TimeoutError) as error:
            why = str(error) or type(error).__name__
        now = self._now()
        async with self._sessions.tenant(job.claim.tenant_id) as session:
            version = await rotations.held(session, job.claim)
            before, version.attempts = version.attempts, 0 if why is None else version.attempts + 1
            version.error = None if why is None else why[:500]
            version.step_at = now + timedelta(seconds=CHECK_S if why is None else CHECK_AGAIN_S)
            fails, ends = version.attempts == CHECKS_FAILED, why is None and before >= CHECKS_FAILED
            if fails or ends:
                action = "federation.fail" if fails else "federation.recover"
                detail = {"name": job.key.name} if why is None else {"name": job.key.name, "why": why[:500]}
                subject = f"key:{job.key.id}"
                await audit.record(session, version.tenant_id, ENGINE, action, subject, at=now, detail=detail)
        if fails:
            self._alert("federation.failed", str(job.key.id))

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
        switches = switches and job.shares_source(back)
        if job.driver is None or ref is None or not switches or not job.driver.capabilities.disables:
            return await self._trial.of(job, back) == "works"
        await timed(job.driver.enable(ref))
        works = await self._trial.of(job, back) == "works"
        if not works:
            await timed(job.driver.disable(ref))
        return works
