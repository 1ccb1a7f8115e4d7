"""/api/v1/pools/{id}/rotation: one way of rotating for every key of a pool."""

from __future__ import annotations

import random
from datetime import datetime
from uuid import UUID

import msgspec
from litestar import Response, Router, put
from litestar.params import FromPath, JSONBody
from msgspec import Struct
from sqlmodel import col, select

from auth.guards import requires
from auth.scopes import KEYS_ROTATE
from tenants import audit
from tenants.api.call import Caller, reply
from tenants.api.services import Services
from tenants.checks import convert_checked, refuse
from tenants.models import ProviderKey
from tenants.rotation_commands import refuse_keyless
from tenants.rotation_plan import RotationSettings
from tenants.schedule import Schedule, next_due, parse_schedule
from tenants.schemas import KeyRotationIn
from tenants.store import keys as store
from tenants.store import pools, rotations


class ScheduledKey(Struct, frozen=True):
    """A key and its next scheduled run, null without a schedule."""

    id: UUID
    name: str
    due_at: datetime | None


class PoolRotationOut(Struct, frozen=True):
    """The keys that rotate as asked from now on."""

    keys: list[ScheduledKey]


def checked_rotation(data: KeyRotationIn) -> tuple[RotationSettings, Schedule | None]:
    """Return the settings and their schedule; `Invalid` says what to mend."""
    settings = convert_checked(data.settings, RotationSettings, "/settings")
    schedule = None if settings.schedule is None else parse_schedule(settings.schedule)
    if isinstance(schedule, list):
        refuse((f"/settings/schedule{pointer}", sentence) for pointer, sentence in schedule)
        return settings, None
    if schedule is not None and data.source_id is None:
        refuse([("/source_id", "is needed for a schedule: it makes the new secrets")])
    return settings, schedule


def rotate_as(
    row: ProviderKey, data: KeyRotationIn, asked: tuple[RotationSettings, Schedule | None], at: datetime
) -> None:
    """Write the asked settings into a key; each key draws its own jitter."""
    settings, schedule = asked
    row.source_id = data.source_id
    row.rotation = msgspec.to_builtins(settings)
    row.failures = 0
    row.due_at = None if schedule is None else next_due(schedule, after=at, rng=random.SystemRandom())


@put("/pools/{pool_id:uuid}/rotation", summary="Set how a pool's keys are rotated", guards=[requires(KEYS_ROTATE)])
async def set_pool_rotation(
    pool_id: FromPath[UUID], data: JSONBody[KeyRotationIn], call: Caller, services: Services
) -> Response[PoolRotationOut]:
    """Sets every key that the pool has now. Give `jitter_s`, so that they do not all change in the same minute."""
    asked = checked_rotation(data)
    now = services.now()
    async with services.sessions.tenant(call.tenant_id) as session:
        pool = await pools.get(session, call.tenant_id, pool_id)
        source = await rotations.need_source(session, call.tenant_id, data.source_id)
        if asked[1] is not None:
            refuse_keyless(source)
        query = (
            select(ProviderKey)
            .where(col(ProviderKey.tenant_id) == call.tenant_id, col(ProviderKey.pool_id) == pool_id)
            .order_by(col(ProviderKey.id))
            .with_for_update(key_share=True)
        )
        rows = (await session.execute(query)).scalars().all()
        await rotations.refuse_taken_turns(session, source, [row.id for row in rows])
        for row in rows:
            rotate_as(row, data, asked, now)
            await store.save(session, row, at=now)
        detail = {"name": pool.name, "source": None if source is None else source.name, "keys": len(rows)}
        subject = f"pool:{pool_id}"
        await audit.record(session, call.tenant_id, call.actor, "rotation.set", subject, at=now, detail=detail)
    return reply(PoolRotationOut([ScheduledKey(row.id, row.name, row.due_at) for row in rows]))


def router() -> Router:
    """The router."""
    return Router(path="/", route_handlers=[set_pool_rotation], tags=["rotation"])
