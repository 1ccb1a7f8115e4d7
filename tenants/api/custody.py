"""/api/v1/custody: key-encryption keys and data keys, for the operators of the installation.

The jobs are done in slices: a POST works for up to `SLICE_S` seconds and says where the next one goes on. So any
process may answer each of them, one that dies loses nothing, and the caller sees the progress.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Final

from litestar import Response, Router, get, post
from litestar.params import JSONBody

from auth.errors import Invalid
from auth.guards import requires
from auth.principal import PLATFORM_TENANT_ID
from auth.scopes import PLATFORM
from tenants import audit
from tenants.api.call import Call, Caller, reply
from tenants.api.services import Services, TenantServices
from tenants.api.tenants import operators_only
from tenants.custody_schemas import (
    CustodySlice,
    CustodySliceIn,
    KekList,
    KekOut,
    ReencryptIn,
    ShreddedList,
    ShreddedOut,
)
from tenants.kek_uses import kek_uses, status_of
from tenants.reencryption import reencrypt
from tenants.rewrap import Progress, new_data_key, rewrap_data_keys
from tenants.shredding import shreddings
from tenants.store import tenants as tenants_store
from tenants.verification import verify_everything

SLICE_S: Final = 5.0
_FAILED_SHOWN: Final = 100


@get("/", summary="Show the key-encryption keys in use")
async def list_keks(services: Services) -> Response[KekList]:
    """How many data keys each one wraps; one may be retired at zero only. `status` is what its provider says."""
    custody = services.custody_parts
    wrapper, spare = custody.data_keys.wrapper, custody.data_keys.spare.wrapper
    items = [
        KekOut(
            uri=use.kek_uri,
            role=use.role,
            data_keys=use.data_keys,
            status=await status_of(use, wrapper, spare),
        )
        for use in await kek_uses(custody.connections)
    ]
    shares = None if custody.shares is None else custody.shares.uri
    return reply(KekList(current=wrapper.uri, items=items, spare=None if spare is None else spare.uri, shares=shares))


@get("/shredded", summary="Show what became of deleted tenants' secrets")
async def list_shredded(services: Services) -> Response[ShreddedList]:
    """With a store of shares its own word counts: `done_at` is when the share was destroyed there."""
    custody = services.custody_parts
    found = await shreddings(custody.connections, custody.shares)
    items = [
        ShreddedOut(
            tenant_id=each.tenant_id,
            slug=each.slug,
            requested_at=each.requested_at,
            done_at=each.done_at,
            covers_backups=each.covers_backups,
            restored=each.back,
            error=each.error,
        )
        for each in found
    ]
    return reply(ShreddedList(items=items))


@post("/rewrap", summary="Wrap data keys under the current KEK", status_code=200)
async def rewrap(data: JSONBody[CustodySliceIn], call: Caller, services: Services) -> Response[CustodySlice]:
    """After a new KEK was put first; spare wraps are made up to date too. Those that failed need another run."""
    custody = services.custody_parts
    steps = rewrap_data_keys(
        custody.connections, custody.data_keys.wrapper, spare=custody.data_keys.spare, cursor=data.cursor or ""
    )
    return await _slice(steps, "kek.rewrap", data.cursor, call, services)


@post("/verify", summary="Open everything that is stored sealed", status_code=200)
async def verify(data: JSONBody[CustodySliceIn], call: Caller, services: Services) -> Response[CustodySlice]:
    """After a restore, and before a KEK is thrown away; `failed` names what does not open, and why."""
    custody = services.custody_parts
    steps = verify_everything(custody.connections, custody.data_keys, cursor=data.cursor or "")
    return await _slice(steps, "kek.verify", data.cursor, call, services)


@post("/reencrypt", summary="Give a tenant a new data key", status_code=200)
async def reencrypt_tenant(data: JSONBody[ReencryptIn], call: Caller, services: Services) -> Response[CustodySlice]:
    """The call without a cursor makes the data key; all of them move what the tenant has sealed to the newest one."""
    custody = services.custody_parts
    if data.cursor is None:
        async with services.sessions.platform() as session:
            await tenants_store.get(session, data.tenant_id)
        await new_data_key(
            custody.connections, custody.data_keys.wrapper, data.tenant_id, spare=custody.data_keys.spare
        )
    steps = reencrypt(custody.connections, custody.data_keys, data.tenant_id, cursor=data.cursor or "")
    return await _slice(steps, "kek.reencrypt", data.cursor, call, services, subject=f"tenant:{data.tenant_id}")


async def _slice(
    steps: AsyncIterator[Progress],
    action: str,
    cursor: str | None,
    call: Call,
    services: TenantServices,
    *,
    subject: str = "installation",
) -> Response[CustodySlice]:
    ends = time.monotonic() + SLICE_S
    progress = Progress()
    try:
        async for step in steps:
            progress = step
            if time.monotonic() >= ends:
                break
    except ValueError as error:
        raise Invalid("The cursor is not one of this job's.", hint="Leave it out to begin anew.") from error
    if cursor is None:
        async with services.sessions.platform() as session:
            await audit.record(session, PLATFORM_TENANT_ID, call.actor, action, subject, at=services.now(), detail={})
    failed = dict(list(progress.failed.items())[:_FAILED_SHOWN])
    left = max(progress.total - progress.done - len(progress.failed), 0) if progress.cursor else 0
    return reply(
        CustodySlice(
            done=progress.done,
            left=left,
            failed=failed,
            next_cursor=progress.cursor or None,
            shredded=progress.shredded,
            unchecked=progress.unchecked,
        )
    )


def router() -> Router:
    """The router, for operators alone."""
    return Router(
        path="/custody",
        route_handlers=[list_keks, list_shredded, rewrap, verify, reencrypt_tenant],
        guards=[requires(PLATFORM), operators_only],
        tags=["custody"],
    )
