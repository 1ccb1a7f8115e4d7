"""What people and schedules ask of a key's versions: start, promote, roll back, revoke. Each is one transaction.

Every function expects the key's row to be locked (`store.keys.get(…, for_change=True)`), which is the lock of its
versions, and leaves exactly one current version unless the last one is revoked by force.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from auth.errors import Conflict
from auth.sealing import Sealed
from auth.secret import Secret
from tenants.fingerprint import fingerprint_of, prefix_of
from tenants.lifecycle import IN_FLIGHT, VersionState
from tenants.models import KeySource, KeyVersion, ProviderKey
from tenants.rotation_plan import LOOK_FIRST_S, WATCH_S, RotationSettings
from tenants.sources.registry import KEYLESS
from tenants.store import keys, rotations


def next_number(versions: Sequence[KeyVersion]) -> int:
    """Return the number of the next version: numbers only grow, and are part of what an envelope is bound to."""
    return 1 + max((version.number for version in versions), default=0)


def refuse_when_busy(versions: Sequence[KeyVersion]) -> None:
    """Raise `Conflict` while a rotation of the key is under way."""
    for version in versions:
        if version.state in IN_FLIGHT:
            raise Conflict(
                f"Version {version.number} of the key is being made ({version.state}).",
                hint="Wait until it is current or failed: GET /api/v1/keys/{id}/versions shows it. "
                "To give it up, revoke that version.",
            )


def refuse_keyless(source: KeySource | None) -> None:
    """Raise `Conflict` for a source whose keys have no secret that could be replaced."""
    if source is not None and source.driver in KEYLESS:
        raise Conflict(
            "The key has no secret: its tokens are short-lived and renewed by themselves.",
            hint="Nothing needs to be rotated. To give it a stored secret instead, send api_key.",
        )


def intent(
    key: ProviderKey, versions: Sequence[KeyVersion], *, at: datetime, due: datetime | None = None
) -> KeyVersion:
    """Return the version that a driver shall make, `due` or at once: stored before the provider is asked."""
    return KeyVersion(
        tenant_id=key.tenant_id,
        key_id=key.id,
        number=next_number(versions),
        state=VersionState.PENDING.value,
        step_at=due or at,
        created_at=at,
        state_changed_at=due or at,
    )


def supplied(key: ProviderKey, number: int, secret: Secret, sealed: Sealed, *, at: datetime) -> KeyVersion:
    """Return the version of a secret that the tenant brought, ready to be probed or promoted."""
    return KeyVersion(
        tenant_id=key.tenant_id,
        key_id=key.id,
        number=number,
        state=VersionState.CREATED.value,
        data_key_id=sealed.data_key_id,
        envelope=sealed.blob,
        prefix=prefix_of(secret),
        fingerprint=fingerprint_of(key.tenant_id, secret),
        created_at=at,
        state_changed_at=at,
    )


async def promote(
    session: AsyncSession,
    version: KeyVersion,
    versions: Sequence[KeyVersion],
    settings: RotationSettings,
    *,
    at: datetime,
) -> None:
    """Make `version` current and let the old one drain, in the caller's transaction: its commit tells every process.

    One that comes back from disabled is enabled at the provider by the engine's next step. While an old one could take
    over, the engine tries the new one now and then, and goes back when the provider refuses it.
    """
    old = rotations.current(versions)
    if old is not None and old.id != version.id:
        await keys.move(session, old, VersionState.DRAINING, at=at)
        old.step_at = at + timedelta(seconds=min(settings.drain_s, LOOK_FIRST_S))
    if version.state == VersionState.DISABLED:
        version.successes = 0
    await keys.move(session, version, VersionState.CURRENT, at=at)
    version.step_at = at if version.successes == 0 else at + timedelta(seconds=WATCH_S)
    version.attempts, version.error = 0, None
    await session.flush()


def erase_earlier(version: KeyVersion, versions: Sequence[KeyVersion]) -> None:
    """Erase the secrets of all other versions: the key has another base URL now, which they were not given for.

    Rolled back to, or tried because the provider refuses the new one, they would be sent there. They drain and are
    disabled at the provider as ever: requests that began with one hold it in memory.
    """
    for each in versions:
        if each.id != version.id:
            each.envelope, each.data_key_id = None, None


async def roll_back(
    session: AsyncSession, versions: Sequence[KeyVersion], settings: RotationSettings, *, at: datetime
) -> KeyVersion:
    """Put the newest earlier version that still lives back in place; `Conflict` when there is none."""
    target = rotations.fallback(versions)
    if target is None:
        raise Conflict(
            "No earlier version of the key lives any more.",
            hint="Rotate to a new secret instead: POST /api/v1/keys/{id}/rotate. What was given for another base URL "
            "does not come back either.",
        )
    await promote(session, target, versions, settings, at=at)
    return target


async def revoke(
    session: AsyncSession,
    version: KeyVersion,
    versions: Sequence[KeyVersion],
    settings: RotationSettings,
    *,
    at: datetime,
    force: bool,
) -> KeyVersion | None:
    """Take a version out of use for good, at once; returns the version that serves from now on.

    Its envelope is erased now; the key at the provider is deleted by the engine's next step. The current version makes
    way for one that can come back; without one it is only revoked by `force`, and the key then serves nothing.
    """
    serving = rotations.current(versions)
    if serving is not None and serving.id == version.id:
        others = [each for each in versions if each.id != version.id]
        serving = rotations.fallback(others)
        if serving is None and not force:
            raise Conflict(
                "It is the key's only living version: without it the key serves nothing.",
                hint="Rotate to a new secret first, or revoke it anyway with force=true.",
            )
        await keys.move(session, version, VersionState.REVOKED, at=at)
        if serving is not None:
            await promote(session, serving, others, settings, at=at)
    elif version.state == VersionState.PENDING:
        await keys.move(session, version, VersionState.ORPHANED, at=at)
    else:
        await keys.move(session, version, VersionState.REVOKED, at=at)
    version.step_at = at
    await session.flush()
    return serving
