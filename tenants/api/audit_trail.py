"""/api/v1/audit: who did what, in the order of the chain."""

from __future__ import annotations

from litestar import Response, Router, get
from sqlmodel import col, select

from auth.guards import requires
from auth.paging import cut_page, page_ask
from auth.scopes import AUDIT_READ
from tenants.api.call import Caller, Cursor, Limit, reply
from tenants.api.services import Services
from tenants.audit import ChainCheck
from tenants.models import AuditEvent
from tenants.schemas import AuditEventOut, AuditPage, AuditVerdict

_BATCH = 1000


@get("/", summary="Read the audit trail", guards=[requires(AUDIT_READ)])
async def list_events(
    call: Caller, services: Services, limit: Limit = None, cursor: Cursor = None
) -> Response[AuditPage]:
    """Oldest first; each event carries its hash and the one before it, so that an export can be checked elsewhere."""
    ask = page_ask(limit, cursor)
    query = select(AuditEvent).where(col(AuditEvent.tenant_id) == call.tenant_id)
    if ask.after is not None:
        after = select(col(AuditEvent.seq)).where(
            col(AuditEvent.tenant_id) == call.tenant_id, col(AuditEvent.id) == ask.after
        )
        query = query.where(col(AuditEvent.seq) > after.scalar_subquery())
    async with services.sessions.tenant(call.tenant_id) as session:
        rows = (await session.execute(query.order_by(col(AuditEvent.seq)).limit(ask.fetch))).scalars().all()
    page = cut_page(rows, ask, key=lambda row: row.id)
    return reply(AuditPage(items=[_shown(row) for row in page.items], next_cursor=page.next_cursor))


@get("/verify", summary="Check the audit chain", guards=[requires(AUDIT_READ)])
async def verify_events(call: Caller, services: Services) -> Response[AuditVerdict]:
    """Recomputes every hash; an edited, missing or inserted event shows as the first break."""
    check = ChainCheck()
    async with services.sessions.tenant(call.tenant_id) as session:
        query = select(AuditEvent).where(col(AuditEvent.tenant_id) == call.tenant_id).order_by(col(AuditEvent.seq))
        async for event in await session.stream_scalars(query.execution_options(yield_per=_BATCH)):
            check.add(event)
    if check.broken is not None:
        broken = check.broken
        return reply(AuditVerdict(intact=False, events=check.count, broken_at=broken.seq, reason=broken.reason))
    return reply(AuditVerdict(intact=True, events=check.count, last_hash=check.last_hash.hex()))


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
    return Router(path="/audit", route_handlers=[list_events, verify_events], tags=["audit"])
