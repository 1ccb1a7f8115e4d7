"""/api/v1/audit: who did what, in the order of the chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Response, Router, get
from litestar.params import QueryParameter
from litestar.response import Stream
from sqlmodel import col, select

from auth.errors import Invalid
from auth.guards import requires
from auth.paging import cut_page, page_ask
from auth.scopes import AUDIT_READ
from auth.storage import Sessions
from tenants.api.call import Caller, Cursor, Limit, reply
from tenants.api.services import Services
from tenants.audit import GENESIS, ChainCheck
from tenants.models import AuditEvent
from tenants.schemas import AuditEventOut, AuditPage, AuditVerdict

_BATCH = 1000


@get("/", summary="Read the audit trail", guards=[requires(AUDIT_READ)])
async def list_events(
    call: Caller, services: Services, limit: Limit = None, cursor: Cursor = None
) -> Response[AuditPage]:
    """Oldest first; each event carries its hash and the one before it, so that an export can be checked elsewhere."""
    ask = page_ask(limit, cursor)
    mine = col(AuditEvent.tenant_id) == call.tenant_id
    query = select(AuditEvent).where(mine)
    async with services.sessions.tenant(call.tenant_id) as session:
        if ask.after is not None:
            after = await session.scalar(select(AuditEvent.seq).where(mine, col(AuditEvent.id) == ask.after))
            if after is None:  # an empty page would say that the trail ends there
                raise Invalid(
                    "The cursor names no event of this trail.",
                    hint="Pass next_cursor of the previous page unchanged, or leave cursor out to start again.",
                    errors=(("/cursor", "is not a cursor of this list"),),
                )
            query = query.where(col(AuditEvent.seq) > after)
        rows = (await session.execute(query.order_by(col(AuditEvent.seq)).limit(ask.fetch))).scalars().all()
    page = cut_page(rows, ask, key=lambda row: row.id)
    return reply(AuditPage(items=[_shown(row) for row in page.items], next_cursor=page.next_cursor))


KnownSeq = Annotated[int | None, QueryParameter(ge=1, description="The number of an event that you know.")]
KnownHash = Annotated[str | None, QueryParameter(pattern="^[0-9a-f]{64}$", description="Its hash.")]


@get("/verify", summary="Check the audit chain", guards=[requires(AUDIT_READ)])
async def verify_events(
    call: Caller, services: Services, known_seq: KnownSeq = None, known_hash: KnownHash = None
) -> Response[AuditVerdict]:
    """Recomputes every hash; an edited, missing or inserted event shows as the first break.

    A chain whose end was cut off, or that came back from an older backup, is whole by itself: give the number and hash
    of an event that you know, such as the head of an export, and it shows.
    """
    if (known_seq is None) != (known_hash is None):
        raise Invalid("known_seq and known_hash go together.", hint="Give both, as the head of an export has them.")
    check = ChainCheck(
        known=None if known_seq is None or known_hash is None else (known_seq, bytes.fromhex(known_hash))
    )
    async with services.sessions.tenant(call.tenant_id) as session:
        async for event in await session.stream_scalars(_chain(call.tenant_id).execution_options(yield_per=_BATCH)):
            check.add(event)
    broken = check.finish()
    if broken is not None:
        return reply(AuditVerdict(intact=False, events=check.count, broken_at=broken.seq, reason=broken.reason))
    return reply(AuditVerdict(intact=True, events=check.count, last_hash=check.last_hash.hex()))


@get("/export", summary="Export the audit chain", guards=[requires(AUDIT_READ)], media_type="application/x-ndjson")
async def export_events(call: Caller, services: Services) -> Stream:
    """JSON lines: every event in order, then `{"head": {"tenant_id", "seq", "hash"}}`. `llm-proxy audit verify FILE`
    checks it without the gateway, and the gateway against it.
    """
    headers = {"cache-control": "no-store", "content-disposition": 'attachment; filename="audit.jsonl"'}
    return Stream(export_lines(services.sessions, call.tenant_id), media_type="application/x-ndjson", headers=headers)


async def export_lines(sessions: Sessions, tenant_id: UUID, *, batch: int = _BATCH) -> AsyncIterator[bytes]:
    """Give an export's lines, read `batch` events at a time.

    Whoever takes them may be slow: no transaction waits for that, and no connection.
    """
    seq, last = 0, GENESIS
    more = True
    while more:
        async with sessions.tenant(tenant_id) as session:
            query = _chain(tenant_id).where(col(AuditEvent.seq) > seq).limit(batch)
            events = (await session.execute(query)).scalars().all()
        for event in events:
            seq, last = event.seq, event.hash
            yield msgspec.json.encode(_shown(event)) + b"\n"
        more = len(events) == batch
    yield msgspec.json.encode({"head": {"tenant_id": tenant_id, "seq": seq, "hash": last.hex()}}) + b"\n"


def _chain(tenant_id: UUID) -> Any:
    return select(AuditEvent).where(col(AuditEvent.tenant_id) == tenant_id).order_by(col(AuditEvent.seq))


def _shown(row: AuditEvent) -> AuditEventOut:
    return AuditEventOut(
        id=row.id,
        seq=row.seq,
        at=row.at,
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        address=row.address,
        request_id=row.request_id,
        detail=row.detail,
        previous_hash=row.previous_hash.hex(),
        hash=row.hash.hex(),
    )


def router() -> Router:
    """The router."""
    return Router(path="/audit", route_handlers=[list_events, verify_events, export_events], tags=["audit"])
