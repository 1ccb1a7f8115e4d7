"""Rotates keys: claims what is due, asks the provider, and moves versions through `tenants.lifecycle`.

Each step is claim → read → call the provider → settle. No transaction is open while the provider is called. The intent
to create is stored before the call and the envelope right after it; whatever dies in between is found again by its tag.
A new key serves only after it was probed, and the old one is drained before it is disabled, and disabled before it is
revoked, so a process may be killed anywhere and a key always has a version that works.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from auth.errors import Unavailable
from auth.sealing import Sealer
from auth.secret import Secret
from auth.storage import Sessions
from tenants import audit
from tenants.custody import seal_key, source_context
from tenants.errors import SealBroken
from tenants.fingerprint import fingerprint_of, prefix_of
from tenants.lifecycle import IN_FLIGHT, VersionState
from tenants.models import KeySource
from tenants.rotation_commands import promote
from tenants.rotation_due import DueKeys
from tenants.rotation_job import (
    ENGINE,
    Alert,
    Desk,
    Job,
    facts_of,
    no_alert,
    schedule_of,
    source_id_of,
    timed,
)
from tenants.rotation_plan import (
    Do,
    is_delayed,
    load_settings,
    look_s,
    next_do,
    step_retry_s,
    tag_of,
)
from tenants.rotation_trial import Trial
from tenants.rotation_watch import Watch
from tenants.schedule import retry_at
from tenants.sources.federated import FederatedDriver
from tenants.sources.protocol import (
    Driver,
    Prober,
    ProviderKeyMade,
    SourceAway,
    SourceRefused,
    SourceUnknown,
)
from tenants.store import keys, rotations
from tenants.store.rotations import Claim, ClaimLost

LEASE_S: Final = 120.0
BATCH: Final = 20
ROUNDS: Final = 10

MakeDriver = Callable[[KeySource, Secret | None], Driver]
"""Builds the driver of a source with its opened admin credential; `SourceRefused` when the settings do not fit."""

_log = logging.getLogger(__name__)


class RotationEngine:
    """Runs in every control process; claims keep two of them apart.

    `now` gives the time with its zone; `alert` is told (event, key id) of what a person should look at.
    """

    def __init__(
        self,
        sessions: Sessions,
        sealer: Sealer,
        make_driver: MakeDriver,
        prober: Prober,
        *,
        now: Callable[[], datetime],
        rng: random.Random,
        alert: Alert = no_alert,
    ) -> None:
        self._sessions = sessions
        self._sealer = sealer
        self._make_driver = make_driver
        self._trial = Trial(sealer, prober)
        self._desk = Desk(sessions, now)
        self._watch = Watch(sessions, self._desk, self._trial, now=now, alert=alert)
        self._due = DueKeys(sessions, now=now, rng=rng, alert=alert, batch=BATCH)
        self._now = now
        self._rng = rng
        self._alert = alert

    async def run_once(self) -> int:
        """Start what is due by schedule, take every step that is due, and return how many that were.

        A step often makes the next one due at once, so there are several rounds; what is left waits for the next run.
        """
        await self._due.start()
        taken = 0
        for _ in range(ROUNDS):
            async with self._sessions.platform() as session:
                claims = await rotations.claim_steps(session, now=self._now(), lease_s=LEASE_S, limit=BATCH)
            if not claims:
                break
            await asyncio.gather(*(self._step(claim) for claim in claims))
            taken += len(claims)
        return taken

    async def _step(self, claim: Claim) -> None:
        try:
            job = await self._read(claim)
            action = next_do(facts_of(job.version), job.settings, now=self._now())
            await self._act(job, action)
        except ClaimLost:
            _log.info("version %s was taken over by another process", claim.version_id)
        except (SourceAway, TimeoutError, Unavailable) as error:
            await self._postpone(claim, error)
        except (SourceRefused, SealBroken) as error:
            await self._refused(claim, error)
        except Exception:  # noqa: BLE001 -- one key's defect must not stop the others; its claim runs out and it is retried
            _log.exception("rotation step of version %s failed", claim.version_id)
            self._alert("rotation.defect", str(claim.version_id))

    async def _act(self, job: Job, action: Do) -> None:
        match action:
            case Do.CREATE | Do.RECOVER:
                await self._create(job, recover=action is Do.RECOVER)
            case Do.PROBE:
                await self._probe(job)
            case Do.PROMOTE:
                await self._promote(job)
            case Do.ENABLE:
                if job.driver is not None and job.driver.capabilities.disables and job.version.provider_ref:
                    await timed(job.driver.enable(job.version.provider_ref))
                await self._watch.again(job)
            case Do.WATCH if isinstance(job.driver, FederatedDriver) and job.version.envelope is None:
                await self._watch.check(job, job.driver)
            case Do.WATCH:
                await self._watch.watch(job)
            case Do.LOOK:
                await self._watch.look(job)
            case Do.DISABLE:
                await self._watch.disable(job)
            case Do.REVOKE:
                await self._revoke_there(job)
                await self._desk.settle(job, VersionState.REVOKED, event="key.revoke")
            case Do.CLEAN:
                await self._clean(job)
            case Do.GIVE_UP:
                await self._give_up(job)
            case Do.NOTHING:
                await self._desk.settle(job, None)

    async def _read(self, claim: Claim) -> Job:
        async with self._sessions.tenant(claim.tenant_id) as session:
            version = await rotations.held(session, claim)
            key = await keys.get(session, claim.tenant_id, version.key_id)
            others = [each for each in await keys.versions(session, claim.tenant_id, key.id) if each.id != version.id]
            source = await rotations.source_of(session, claim.tenant_id, source_id_of(version, key))
        driver = None
        if source is not None:
            credential = None
            if source.sealed is not None and source.data_key_id is not None:
                context = source_context(source.id, source.driver)
                plain = await self._sealer.open(claim.tenant_id, source.data_key_id, context, source.sealed)
                credential = Secret(plain.decode())
            driver = self._make_driver(source, credential)
        source_id = None if source is None else source.id
        return Job(claim, version, others, key, load_settings(key.rotation), source_id, driver)

    async def _create(self, job: Job, *, recover: bool) -> None:
        driver = job.driver
        if driver is None or not driver.capabilities.mints:
            raise SourceRefused("the key's source cannot make keys")
        if driver.capabilities.slots is not None:
            # Their `step_at` may be a claim, two minutes away: how long to wait is reckoned from the drain's start.
            now, drain = self._now(), timedelta(seconds=job.settings.drain_s)
            began = [each.state_changed_at for each in job.others if each.state == VersionState.DRAINING]
            if began:
                ends = max(max(began) + drain, now) + timedelta(seconds=1)
                soon = now + timedelta(seconds=look_s(now - min(began)))
                await self._desk.settle(job, None, until=min(ends, soon))
                return
        tag = tag_of(job.version.id)
        made: ProviderKeyMade | None = None
        if recover and driver.capabilities.finds:
            try:
                made = await timed(driver.find(tag))
            except SourceRefused as error:
                raise SourceUnknown(str(error)) from error
            if made is not None and made.secret is None:
                # It exists and nobody knows its secret: it goes before another is made, so there is never one too many.
                await timed(driver.revoke(made.ref))
                made = None
        elif recover and not driver.capabilities.repeatable:
            raise SourceUnknown("whether the last attempt made a key is not known, and its source cannot tell")
        if made is None:
            await self._note_attempt(job)
            serving = rotations.current(job.others)
            in_use = serving.provider_ref if serving and job.shares_source(serving) else None
            made = await timed(driver.create(tag, in_use=in_use))
        if made.secret is None:
            raise SourceUnknown("the source made a key and did not tell its secret")
        try:
            await self._store(job, made.ref, made.secret)
        except ClaimLost:
            await self._let_go(job, driver, made.ref)
            raise

    async def _let_go(self, job: Job, driver: Driver, ref: str) -> None:
        """Revoke what was made for a version that nobody looks after any more: deleted meanwhile, or made anew."""
        async with self._sessions.tenant(job.claim.tenant_id) as session:
            version = await rotations.find(session, job.claim)
        found_by_its_tag = version is not None and version.state in (VersionState.PENDING, VersionState.ORPHANED)
        if found_by_its_tag or (version is not None and version.provider_ref == ref):
            return
        if not driver.capabilities.revokes:
            return
        try:
            await timed(driver.revoke(ref))
        except (SourceAway, SourceRefused, TimeoutError) as error:
            _log.error("%s is left at its provider as %s: %s", tag_of(job.version.id), ref, error)
            self._alert("rotation.orphaned", str(job.key.id))

    async def _note_attempt(self, job: Job) -> None:
        async with self._sessions.tenant(job.claim.tenant_id) as session:
            version = await rotations.held(session, job.claim)
            version.attempts += 1
            version.source_id = job.source_id
            if job.driver is not None and job.driver.capabilities.slots is not None:
                for each in await keys.versions(session, job.claim.tenant_id, version.key_id):
                    # its slot is about to be overwritten
                    if each.state == VersionState.DISABLED and job.shares_source(each):
                        each.step_at = None
                        await keys.move(session, each, VersionState.REVOKED, at=self._now())

    async def _store(self, job: Job, ref: str, secret: Secret) -> None:
        sealed = await seal_key(
            self._sealer,
            job.claim.tenant_id,
            secret,
            pool_id=job.key.pool_id,
            key_id=job.key.id,
            number=job.version.number,
            provider=job.key.provider,
        )
        async with self._sessions.tenant(job.claim.tenant_id) as session:
            version = await rotations.held(session, job.claim)
            version.provider_ref = ref
            version.data_key_id, version.envelope = sealed.data_key_id, sealed.blob
            version.prefix = prefix_of(secret)
            version.fingerprint = fingerprint_of(job.claim.tenant_id, secret)
            version.error = None
            await keys.move(session, version, VersionState.CREATED, at=self._now())
            version.step_at = self._now()

    async def _probe(self, job: Job) -> None:
        result = await self._trial.of(job, job.version)
        now = self._now()
        async with self._sessions.tenant(job.claim.tenant_id) as session:
            version = await rotations.held(session, job.claim)
            if version.state == VersionState.CREATED:
                await keys.move(session, version, VersionState.PROBING, at=now)
            # One success is no proof: providers spread a new key over their machines, so failures start the count anew.
            version.successes = version.successes + 1 if result == "works" else 0
            version.error = None if result == "works" else f"the provider's answer to a probe was: {result}"
            done = version.successes >= job.settings.probes
            version.step_at = now if done else now + timedelta(seconds=job.settings.probe_interval_s)

    async def _promote(self, job: Job) -> None:
        now = self._now()
        async with self._sessions.tenant(job.claim.tenant_id) as session:
            version = await rotations.held(session, job.claim)
            versions = await keys.versions(session, version.tenant_id, version.key_id)
            await promote(session, version, versions, job.settings, at=now)
            key = await keys.get(session, job.claim.tenant_id, version.key_id)
            key.failures = 0
            detail = {"name": key.name, "number": version.number, "fingerprint": version.fingerprint}
            await audit.record(session, key.tenant_id, ENGINE, "key.rotate", f"key:{key.id}", at=now, detail=detail)

    async def _clean(self, job: Job) -> None:
        ref = job.version.provider_ref
        if job.driver is not None and ref is None and job.driver.capabilities.finds:
            found = await timed(job.driver.find(tag_of(job.version.id)))
            ref = None if found is None else found.ref
        elif ref is None:
            await self._desk.settle(job, None)
            self._alert("rotation.orphaned", str(job.key.id))
            return
        if ref is not None:
            await self._revoke_there(job, ref)
        target = VersionState.REVOKED if job.version.state == VersionState.ORPHANED else None
        await self._desk.settle(job, target, event="key.cleaned")

    async def _revoke_there(self, job: Job, ref: str | None = None) -> None:
        ref = ref or job.version.provider_ref
        if job.driver is None or ref is None or not job.driver.capabilities.revokes:
            return
        # A slot that a newer version has taken over since is that version's: nothing of the old one is left in it.
        newer = (each for each in job.others if each.number > job.version.number and job.shares_source(each))
        if any(each.provider_ref == ref for each in newer):
            return
        await timed(job.driver.revoke(ref))

    async def _give_up(self, job: Job) -> None:
        try:
            ref = job.version.provider_ref
            if ref is None and job.driver is not None and job.driver.capabilities.finds:
                found = await timed(job.driver.find(tag_of(job.version.id)))
                ref = None if found is None else found.ref
            if ref is not None:
                await self._revoke_there(job, ref)
        except (SourceAway, SourceRefused, TimeoutError) as error:
            await self._fail(job.claim, VersionState.ORPHANED, str(error), again_s=step_retry_s(9))
            return
        await self._fail(job.claim, VersionState.FAILED, job.version.error or "it did not work before its deadline")

    async def _postpone(self, claim: Claim, error: BaseException, *, refused: bool = False) -> None:
        """Try the step again later; a person is told once of what is refused, or goes on failing."""
        now = self._now()
        try:
            async with self._sessions.tenant(claim.tenant_id) as session:
                version = await rotations.held(session, claim)
                version.successes = 0
                if version.attempts or version.state != VersionState.PENDING:
                    version.attempts += 1  # 0 says that the provider was never asked to create: keep that true
                version.error = (str(error) or type(error).__name__)[:500]
                version.step_at = now + timedelta(seconds=step_retry_s(version.attempts))
                waits = now - version.state_changed_at
                if version.alerted_at is not None or not (refused or is_delayed(version.attempts, waits)):
                    return
                version.alerted_at = now
                detail = {"number": version.number, "state": version.state, "why": version.error}
                subject, action = f"key:{version.key_id}", "rotation.stuck" if refused else "rotation.delay"
                await audit.record(session, claim.tenant_id, ENGINE, action, subject, at=now, detail=detail)
        except (ClaimLost, Unavailable):
            return  # the claim runs out by itself, and whoever holds it then goes on
        self._alert("rotation.stuck" if refused else "rotation.delayed", str(version.key_id))

    async def _refused(self, claim: Claim, error: Exception) -> None:
        async with self._sessions.tenant(claim.tenant_id) as session:
            try:
                version = await rotations.held(session, claim)
            except ClaimLost:
                return
            state = VersionState(version.state)
        if state in IN_FLIGHT:
            leftover = isinstance(error, SourceUnknown) or version.provider_ref is not None
            target = VersionState.ORPHANED if leftover else VersionState.FAILED
            await self._fail(claim, target, str(error), again_s=step_retry_s(9) if leftover else None)
            return
        await self._postpone(claim, error, refused=True)

    async def _fail(self, claim: Claim, state: VersionState, why: str, *, again_s: float | None = None) -> None:
        now = self._now()
        async with self._sessions.tenant(claim.tenant_id) as session:
            try:
                version = await rotations.held(session, claim)
            except ClaimLost:
                return
            version.error = why[:500]
            await keys.move(session, version, state, at=now)
            version.step_at = None if again_s is None else now + timedelta(seconds=again_s)
            key = await keys.get(session, claim.tenant_id, version.key_id)
            key.failures += 1
            schedule = schedule_of(load_settings(key.rotation))
            if schedule is not None:
                again = retry_at(schedule, failures=key.failures, now=now, rng=self._rng)
                key.due_at = again if key.due_at is None else min(key.due_at, again)
            detail = {"name": key.name, "number": version.number, "state": state.value, "why": why[:500]}
            await audit.record(session, key.tenant_id, ENGINE, "rotation.fail", f"key:{key.id}", at=now, detail=detail)
        self._alert("rotation.failed", str(key.id))
