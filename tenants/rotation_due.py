"""Starts rotations that are due by their schedule: an intent is stored, which the engine carries out."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from auth.storage import Sessions
from tenants import audit
from tenants.lifecycle import IN_FLIGHT
from tenants.models import ProviderKey
from tenants.rotation_commands import intent
from tenants.rotation_job import ENGINE, Alert, stored_schedule
from tenants.schedule import BACKOFF_MOST_S, next_due, outside_blackouts
from tenants.store import keys, rotations


class DueKeys:
    """Keys whose next run has come; `now` gives the time with its zone, `batch` is how many are started at a time."""

    def __init__(
        self, sessions: Sessions, *, now: Callable[[], datetime], rng: random.Random, alert: Alert, batch: int
    ) -> None:
        self._sessions = sessions
        self._now = now
        self._rng = rng
        self._alert = alert
        self._batch = batch

    async def start(self) -> None:
        """Start what is due, a batch at most; the next run is stored in the same transaction."""
        now = self._now()
        async with self._sessions.platform() as session:
            for key in await rotations.claim_due_keys(session, now=now, limit=self._batch):
                try:
                    schedule = stored_schedule(key)
                except ValueError as error:
                    await self._unreadable(session, key, error)
                    continue
                if schedule is not None and (free_at := outside_blackouts(schedule, now)) > now:
                    key.due_at = free_at  # it was missed, and is caught up when it may be
                    continue
                key.due_at = None if schedule is None else next_due(schedule, after=now, rng=self._rng)
                versions = await keys.versions(session, key.tenant_id, key.id)
                if schedule is None or any(version.state in IN_FLIGHT for version in versions):
                    continue
                await keys.add_version(session, intent(key, versions, at=now))
                detail = {"name": key.name, "by": "schedule"}
                await audit.record(
                    session, key.tenant_id, ENGINE, "rotation.start", f"key:{key.id}", at=now, detail=detail
                )

    async def _unreadable(self, session: AsyncSession, key: ProviderKey, error: ValueError) -> None:
        """Look at a key again later whose settings this release cannot read: the others must not wait for it."""
        now = self._now()
        key.failures += 1
        key.due_at = now + timedelta(seconds=BACKOFF_MOST_S)
        detail = {"name": key.name, "why": f"its settings cannot be read: {error}"[:500]}
        await audit.record(session, key.tenant_id, ENGINE, "rotation.fail", f"key:{key.id}", at=now, detail=detail)
        self._alert("rotation.failed", str(key.id))
