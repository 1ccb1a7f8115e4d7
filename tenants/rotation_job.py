"""One step's worth of a rotation: what was read about a version, and the helpers that every step uses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID

import msgspec

from auth.storage import Sessions
from tenants import audit
from tenants.audit import Actor
from tenants.lifecycle import VersionState
from tenants.models import KeyVersion, ProviderKey
from tenants.rotation_plan import Facts, RotationSettings, load_settings
from tenants.schedule import Schedule, parse_schedule
from tenants.sources.protocol import Driver
from tenants.store import keys, rotations
from tenants.store.rotations import Claim

CALL_TIMEOUT_S: Final = 30.0
"""Two calls fit into a claim with room to settle."""

ENGINE: Final = Actor("rotation")

EVENTS: Final = (
    *(f"rotation.{word}" for word in ("failed", "delayed", "stuck", "rolled_back", "orphaned", "defect")),
    "federation.failed",
    "provisioning.failed",
    "provisioning.defect",
)
"""Everything that a person is told of."""

Alert = Callable[[str, str], None]
"""Is told (event, subject) of what a person should look at."""

T = TypeVar("T")


def no_alert(event: str, subject: str) -> None:
    """Stand in where nobody is to be told; every alert is in the audit trail or the log as well."""
    del event, subject


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed version with its key, the key's other versions, and its source with the driver."""

    claim: Claim
    version: KeyVersion
    others: Sequence[KeyVersion]
    key: ProviderKey
    settings: RotationSettings
    source_id: UUID | None
    driver: Driver | None

    def shares_source(self, other: KeyVersion) -> bool:
        """Tell whether another version of the key is of the same source: else its reference means nothing here."""
        return source_id_of(other, self.key) == self.source_id


def source_id_of(version: KeyVersion, key: ProviderKey) -> UUID | None:
    """Return the source that a version is of; the key may have got another one since."""
    return version.source_id or key.source_id


def facts_of(version: KeyVersion) -> Facts:
    """Return what the plan decides by."""
    return Facts(
        state=VersionState(version.state),
        attempts=version.attempts,
        successes=version.successes,
        provider_ref=version.provider_ref,
        state_changed_at=version.state_changed_at,
    )


def schedule_of(settings: RotationSettings) -> Schedule | None:
    """Return the stored schedule, None without one."""
    parsed = None if settings.schedule is None else parse_schedule(settings.schedule)
    return parsed if isinstance(parsed, Schedule) else None


def stored_schedule(key: ProviderKey) -> Schedule | None:
    """Return a key's schedule, None without one; `ValueError` for what this release cannot read.

    A newer release may have written it, or a time zone may be missing here: no reason to end a schedule in silence.
    """
    try:
        settings = load_settings(key.rotation)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    if settings.schedule is None:
        return None
    parsed = parse_schedule(settings.schedule)
    if isinstance(parsed, list):
        raise ValueError("; ".join(f"schedule{pointer} {sentence}" for pointer, sentence in parsed))
    return parsed


async def timed(call: Awaitable[T]) -> T:
    """Await a provider's answer for a bounded time; `TimeoutError` counts as no answer."""
    async with asyncio.timeout(CALL_TIMEOUT_S):
        return await call


class Desk:
    """Where the outcome of a step is written down, if its claim still holds."""

    def __init__(self, sessions: Sessions, now: Callable[[], datetime]) -> None:
        self._sessions = sessions
        self._now = now

    async def settle(
        self,
        job: Job,
        state: VersionState | None,
        *,
        after_s: float | None = None,
        until: datetime | None = None,
        event: str | None = None,
    ) -> None:
        now = self._now()
        async with self._sessions.tenant(job.claim.tenant_id) as session:
            version = await rotations.held(session, job.claim)
            if state is not None:
                await keys.move(session, version, state, at=now)
                version.attempts, version.error = 0, None
            version.step_at = until if after_s is None else now + timedelta(seconds=after_s)
            if event is not None:
                detail = {"name": job.key.name, "number": version.number}
                subject = f"key:{job.key.id}"
                await audit.record(session, version.tenant_id, ENGINE, event, subject, at=now, detail=detail)
