"""/api/v1/keys/{id}/rotate/dry-run: what a rotation would do, without doing it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from litestar import Response, Router, post
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, Struct

from auth.errors import Conflict
from auth.guards import requires
from auth.scopes import KEYS_ROTATE
from auth.secret import Secret
from tenants.api.call import Caller, reply
from tenants.api.services import Services
from tenants.checks import refuse, rotate_problems
from tenants.rotation_commands import next_number, refuse_keyless, refuse_when_busy
from tenants.rotation_plan import load_settings
from tenants.schemas import RotateIn
from tenants.sources.protocol import ProbeResult
from tenants.store import keys as store
from tenants.store import rotations


class RotationPreview(Struct, frozen=True):
    """The version that would be made, and what would become of the one that serves now.

    `probe` is what the provider says of a supplied secret. `drained_at` and `revoked_at` are reckoned from now; a
    secret that is made or probed first serves later, and they move with it.
    """

    number: int
    secret: Literal["supplied", "made by the source"]
    source: str | None
    driver: str | None
    replaces: int | None
    drained_at: datetime
    revoked_at: datetime
    probe: ProbeResult | None = None


@post(
    "/keys/{key_id:uuid}/rotate/dry-run",
    summary="Show what a rotation would do",
    guards=[requires(KEYS_ROTATE)],
    status_code=200,
)
async def preview_rotation(
    key_id: FromPath[UUID], data: JSONBody[RotateIn], call: Caller, services: Services
) -> Response[RotationPreview]:
    """Refuses what the rotation would refuse. A supplied secret is tried against the provider and then forgotten."""
    now = services.now()
    async with services.sessions.tenant(call.tenant_id) as session:
        key = await store.get(session, call.tenant_id, key_id)
        versions = await store.versions(session, call.tenant_id, key_id)
        source = await rotations.source_of(session, call.tenant_id, key.source_id)
    base_url = key.base_url if data.base_url is UNSET else data.base_url
    refuse(rotate_problems(data, key.provider, base_url, services.catalogue))
    if data.api_key is None and source is None:
        raise Conflict(
            "The key has no source that could make a new secret.",
            hint="Send api_key with the new secret, or give the key a source: PUT /api/v1/keys/{id}/rotation.",
        )
    if data.api_key is None:
        refuse_keyless(source)
    refuse_when_busy(versions)
    probe: ProbeResult | None = None
    if data.api_key is not None and services.prober is not None:
        probe = await services.prober.probe(key.provider, base_url, Secret(data.api_key), region=key.region)
    settings = load_settings(key.rotation)
    drained_at = now + timedelta(seconds=settings.drain_s)
    serving = rotations.current(versions)
    return reply(
        RotationPreview(
            number=next_number(versions),
            secret="made by the source" if data.api_key is None else "supplied",
            source=None if source is None else source.name,
            driver=None if source is None else source.driver,
            replaces=None if serving is None else serving.number,
            drained_at=drained_at,
            revoked_at=drained_at + timedelta(seconds=settings.retain_s),
            probe=probe,
        )
    )


def router() -> Router:
    """The router."""
    return Router(path="/", route_handlers=[preview_rotation], tags=["rotation"])
