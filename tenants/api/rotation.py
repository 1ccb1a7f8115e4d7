"""/api/v1/keys/{id}/rotate, /rollback, /rotation and /versions/{n}/revoke: how a key's secret changes."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from litestar import Response, Router, get, post, put
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody
from msgspec import UNSET
from sqlalchemy.ext.asyncio import AsyncSession

from auth.errors import Conflict, NotFound
from auth.guards import requires
from auth.scopes import KEYS_READ, KEYS_ROTATE
from auth.secret import Secret
from tenants import audit
from tenants.api.call import Call, Caller, IfMatch, once, reply
from tenants.api.keys import shown_key
from tenants.api.pool_rotation import checked_rotation, rotate_as
from tenants.api.services import Services, TenantServices
from tenants.checks import moment_problems, refuse, rotate_problems
from tenants.custody import seal_key
from tenants.models import ProviderKey
from tenants.rotation_commands import (
    erase_earlier,
    intent,
    next_number,
    promote,
    refuse_keyless,
    refuse_when_busy,
    revoke,
    roll_back,
    supplied,
)
from tenants.rotation_plan import load_settings
from tenants.schemas import KeyOut, KeyRotationIn, KeyRotationOut, RevokeIn, RotateIn
from tenants.store import keys as store
from tenants.store import rotations


@post(
    "/keys/{key_id:uuid}/rotate",
    summary="Rotate a key",
    guards=[requires(KEYS_ROTATE)],
    status_code=200,
    responses={202: ResponseSpec(KeyOut, description="The new secret is on its way", generate_examples=False)},
)
async def rotate_key(
    key_id: FromPath[UUID], data: JSONBody[RotateIn], call: Caller, services: Services
) -> Response[KeyOut]:
    """A supplied secret serves new requests at once (200); one that is probed or made first is on its way (202).

    Requests that began with the old secret finish with it; afterwards it is disabled, and later revoked.
    """
    if data.api_key is None:
        refuse(rotate_problems(data, "", None, services.catalogue))
        return await _start(key_id, data.at, call, services)
    return await _supply(key_id, data, Secret(data.api_key), call, services)


async def _start(key_id: UUID, due: datetime | None, call: Call, services: TenantServices) -> Response[KeyOut]:
    now = services.now()

    async def work(session: AsyncSession) -> KeyOut:
        refuse(moment_problems(due, now))  # here, since a repeat may come after that moment
        key = await store.get(session, call.tenant_id, key_id, for_change=True)
        if key.source_id is None:
            raise Conflict(
                "The key has no source that could make a new secret.",
                hint="Send api_key with the new secret, or give the key a source: PUT /api/v1/keys/{id}/rotation.",
            )
        refuse_keyless(await rotations.need_source(session, call.tenant_id, key.source_id))
        versions = await store.versions(session, call.tenant_id, key_id)
        refuse_when_busy(versions)
        started = await store.add_version(session, intent(key, versions, at=now, due=due))
        detail = {"name": key.name, "number": started.number} | _told(due)
        subject = f"key:{key_id}"
        await audit.record(session, call.tenant_id, call.actor, "rotation.start", subject, at=now, detail=detail)
        return await shown_key(session, key)

    return await once(call, services.sessions.tenant(call.tenant_id), KeyOut, work, at=now, status=202)


async def _supply(
    key_id: UUID, data: RotateIn, secret: Secret, call: Call, services: TenantServices
) -> Response[KeyOut]:
    now, later = services.now(), data.probe or data.at is not None
    async with services.sessions.tenant(call.tenant_id) as session:
        row = await store.get(session, call.tenant_id, key_id)
        number = next_number(await store.versions(session, call.tenant_id, key_id))
    base_url = row.base_url if data.base_url is UNSET else data.base_url
    refuse(rotate_problems(data, row.provider, base_url, services.catalogue))
    sealed = await seal_key(
        services.sealer,
        call.tenant_id,
        secret,
        pool_id=row.pool_id,
        key_id=key_id,
        number=number,
        provider=row.provider,
    )

    async def work(session: AsyncSession) -> KeyOut:
        refuse(moment_problems(data.at, now))  # here, since a repeat may come after that moment
        key = await store.get(session, call.tenant_id, key_id, for_change=True)
        versions = await store.versions(session, call.tenant_id, key_id)
        refuse_when_busy(versions)
        if next_number(versions) != number:
            raise Conflict("The key was rotated by someone else just now.", hint="Read the key and try again.")
        version = await store.add_version(session, supplied(key, number, secret, sealed, at=now))
        version.provider_ref = data.provider_ref
        version.source_id = None if data.provider_ref is None else key.source_id
        moved = {} if base_url == key.base_url else {"base_url": base_url}
        if later:
            if moved:
                raise Conflict("A new base URL cannot be probed first.", hint="Leave out probe and at, or base_url.")
            version.step_at = data.at or now
        else:
            await promote(session, version, versions, load_settings(key.rotation), at=now)
            if moved:
                erase_earlier(version, versions)
            key.base_url = base_url
            await store.save(session, key, at=now)
        action = "rotation.start" if later else "key.rotate"
        detail = {"name": key.name, "number": number, "fingerprint": version.fingerprint} | _told(data.at) | moved
        await audit.record(session, call.tenant_id, call.actor, action, f"key:{key_id}", at=now, detail=detail)
        return await shown_key(session, key)

    status = 202 if later else 200
    return await once(call, services.sessions.tenant(call.tenant_id), KeyOut, work, at=now, status=status)


@post(
    "/keys/{key_id:uuid}/rollback",
    summary="Go back to the previous secret",
    guards=[requires(KEYS_ROTATE)],
    status_code=200,
)
async def roll_key_back(key_id: FromPath[UUID], call: Caller, services: Services) -> Response[KeyOut]:
    """Possible while the previous version drains or is kept disabled."""
    now = services.now()

    async def work(session: AsyncSession) -> KeyOut:
        key = await store.get(session, call.tenant_id, key_id, for_change=True)
        versions = await store.versions(session, call.tenant_id, key_id)
        back = await roll_back(session, versions, load_settings(key.rotation), at=now)
        detail = {"name": key.name, "number": back.number}
        subject = f"key:{key_id}"
        await audit.record(session, call.tenant_id, call.actor, "key.rollback", subject, at=now, detail=detail)
        return await shown_key(session, key)

    return await once(call, services.sessions.tenant(call.tenant_id), KeyOut, work, at=now, status=200)


@post(
    "/keys/{key_id:uuid}/versions/{number:int}/revoke",
    summary="Revoke a secret at once",
    guards=[requires(KEYS_ROTATE)],
    status_code=200,
)
async def revoke_version(
    key_id: FromPath[UUID], number: FromPath[int], data: JSONBody[RevokeIn], call: Caller, services: Services
) -> Response[KeyOut]:
    """For leaks: every process stops using it within a second, and its envelope is erased."""
    now = services.now()

    async def work(session: AsyncSession) -> KeyOut:
        key = await store.get(session, call.tenant_id, key_id, for_change=True)
        versions = await store.versions(session, call.tenant_id, key_id)
        chosen = next((version for version in versions if version.number == number), None)
        if chosen is None:
            raise NotFound("The key has no such version.", hint="List them: GET /api/v1/keys/{id}/versions.")
        settings = load_settings(key.rotation)
        serving = await revoke(session, chosen, versions, settings, at=now, force=data.force)
        detail = {"name": key.name, "number": number, "serving": None if serving is None else serving.number}
        subject = f"key:{key_id}"
        await audit.record(session, call.tenant_id, call.actor, "key.revoke", subject, at=now, detail=detail)
        return await shown_key(session, key)

    return await once(call, services.sessions.tenant(call.tenant_id), KeyOut, work, at=now, status=200)


@get("/keys/{key_id:uuid}/rotation", summary="Read how a key is rotated", guards=[requires(KEYS_READ)])
async def read_rotation(key_id: FromPath[UUID], call: Caller, services: Services) -> Response[KeyRotationOut]:
    """Its source, its settings and the next scheduled run; the ETag is the key's."""
    async with services.sessions.tenant(call.tenant_id) as session:
        row = await store.get(session, call.tenant_id, key_id)
    return reply(_rotation_out(row), version=row.version)


@put("/keys/{key_id:uuid}/rotation", summary="Set how a key is rotated", guards=[requires(KEYS_ROTATE)])
async def set_rotation(
    key_id: FromPath[UUID],
    data: JSONBody[KeyRotationIn],
    call: Caller,
    services: Services,
    if_match: IfMatch = None,
) -> Response[KeyRotationOut]:
    """A schedule is {"interval_s"} or {"cron", "time_zone"}, with "jitter_s" and weekly "blackouts" if wanted."""
    asked = checked_rotation(data)
    now = services.now()
    async with services.sessions.tenant(call.tenant_id) as session:
        row = await store.get(session, call.tenant_id, key_id, if_match=if_match, for_change=True)
        source = await rotations.need_source(session, call.tenant_id, data.source_id)
        if asked[1] is not None:
            refuse_keyless(source)
        await rotations.refuse_taken_turns(session, source, [key_id])
        rotate_as(row, data, asked, now)
        await store.save(session, row, at=now)
        detail = {"name": row.name, "source": None if source is None else source.name}
        subject = f"key:{key_id}"
        await audit.record(session, call.tenant_id, call.actor, "rotation.set", subject, at=now, detail=detail)
    return reply(_rotation_out(row), version=row.version)


def _told(due: datetime | None) -> dict[str, str]:
    return {} if due is None else {"at": due.isoformat()}


def _rotation_out(row: ProviderKey) -> KeyRotationOut:
    return KeyRotationOut(source_id=row.source_id, settings=row.rotation, due_at=row.due_at, failures=row.failures)


def router() -> Router:
    """The router."""
    return Router(
        path="/",
        route_handlers=[rotate_key, roll_key_back, revoke_version, read_rotation, set_rotation],
        tags=["rotation"],
    )
