"""One step's worth of a rotation: what was read about a version, and the helpers that every step uses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from tenants.lifecycle import VersionState
from tenants.models import KeyVersion, ProviderKey
from tenants.rotation_plan import Facts, RotationSettings
from tenants.schedule import Schedule, parse_schedule
from tenants.sources.protocol import Driver
from tenants.store.rotations import Claim

CALL_TIMEOUT_S: Final = 30.0
"""Two calls fit into a claim with room to settle."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed version with its key, the key's other versions, and the driver of its source."""

    claim: Claim
    version: KeyVersion
    others: Sequence[KeyVersion]
    key: ProviderKey
    settings: RotationSettings
    driver: Driver | None


def facts_of(version: KeyVersion) -> Facts:
    """Return what the plan decides by."""
    return Facts(
        state=VersionState(version.state),
        attempts=version.attempts,
        successes=version.successes,
        provider_ref=version.provider_ref,
        created_at=version.created_at,
        state_changed_at=version.state_changed_at,
    )


def schedule_of(settings: RotationSettings) -> Schedule | None:
    """Return the stored schedule, None without one."""
    parsed = None if settings.schedule is None else parse_schedule(settings.schedule)
    return parsed if isinstance(parsed, Schedule) else None


async def timed(call: Awaitable[T]) -> T:
    """Await a provider's answer for a bounded time; `TimeoutError` counts as no answer."""
    async with asyncio.timeout(CALL_TIMEOUT_S):
        return await call
