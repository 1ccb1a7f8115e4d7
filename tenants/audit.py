"""The audit trail: who did what to what, one hash chain a tenant, so that an edited or missing line shows.

    hash = SHA-256(length-prefixed(scheme, previous hash, canonical JSON of the event))

The gateway's role may insert events and not change them; the chain covers whoever can. The chain's end can still be cut
off by someone with the database's own rights: export it, or keep the last hash elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import desc, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from tenants.envelope import length_prefixed
from tenants.models import AuditEvent

SCHEME: Final = b"llm-proxy/audit/1"
GENESIS: Final = bytes(32)
"""The previous hash of a tenant's first event."""

_encode = msgspec.json.Encoder(order="deterministic").encode


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: the client's id, the address it came from and the request it was part of."""

    client_id: str
    address: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class ChainBreak:
    """The first event that does not follow from the one before it."""

    seq: int
    reason: str


async def record(
    session: AsyncSession,
    tenant_id: UUID,
    actor: Actor,
    action: str,
    subject: str,
    *,
    at: datetime,
    detail: Mapping[str, Any] | None = None,
) -> AuditEvent:
    """Append one event in the caller's transaction, as its last statement: appenders of one tenant queue until commit.

    `action` is `noun.verb`, `subject` `noun:id`, `detail` JSON values without a secret.
    """
    await session.execute(
        text("select pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"audit:{tenant_id}"}
    )
    last = (
        await session.execute(
            select(AuditEvent)
            .where(col(AuditEvent.tenant_id) == tenant_id)
            .order_by(desc(col(AuditEvent.seq)))
            .limit(1)
        )
    ).scalar_one_or_none()
    event = AuditEvent(
        tenant_id=tenant_id,
        seq=1 if last is None else last.seq + 1,
        at=at,
        actor=actor.client_id,
        action=action,
        subject=subject,
        address=actor.address,
        request_id=actor.request_id,
        detail=dict(detail or {}),
        previous_hash=GENESIS if last is None else last.hash,
        hash=b"",
    )
    event.hash = chain_hash(event)
    session.add(event)
    await session.flush()
    return event


def chain_hash(event: AuditEvent) -> bytes:
    """Return the hash that `event` must carry, from its previous hash and everything it says."""
    body = {
        "tenant_id": str(event.tenant_id),
        "id": str(event.id),
        "seq": event.seq,
        "at": event.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": event.actor,
        "action": event.action,
        "subject": event.subject,
        "address": event.address,
        "request_id": event.request_id,
        "detail": event.detail,
    }
    return hashlib.sha256(length_prefixed(SCHEME, event.previous_hash, _encode(body))).digest()


class ChainCheck:
    """Checks a tenant's events one by one, in order of `seq` from the first, in constant memory.

    `known` is the number and hash of an event that the chain must hold: one that was cut off or put back does not.
    """

    def __init__(self, *, known: tuple[int, bytes] | None = None) -> None:
        self.count = 0
        self.last_hash = GENESIS
        self.broken: ChainBreak | None = None
        self._known = known

    def add(self, event: AuditEvent) -> None:
        """Check the next event; after a first break nothing more is looked at."""
        if self.broken is not None:
            return
        expected = self.count + 1
        if event.seq != expected:
            self.broken = ChainBreak(expected, f"event {expected} is missing: the next one is {event.seq}")
        elif event.previous_hash != self.last_hash:
            self.broken = ChainBreak(event.seq, "it does not follow the event before it")
        elif chain_hash(event) != event.hash:
            self.broken = ChainBreak(event.seq, "its content does not match its hash")
        elif self._known is not None and self._known[0] == event.seq and self._known[1] != event.hash:
            self.broken = ChainBreak(event.seq, "it is another event than the one that is known")
        else:
            self.count, self.last_hash = expected, event.hash

    def finish(self) -> ChainBreak | None:
        """Return the first break once every event was added, None for a chain that is whole."""
        if self.broken is None and self._known is not None and self.count < self._known[0]:
            self.broken = ChainBreak(
                self.count + 1,
                f"the chain ends before event {self._known[0]}, which is known: it was cut off or put back",
            )
        return self.broken


def verify_chain(events: Iterable[AuditEvent]) -> int | ChainBreak:
    """Check a tenant's events in order of `seq` from the first; the number of events, or the first break."""
    check = ChainCheck()
    for event in events:
        check.add(event)
    return check.count if check.broken is None else check.broken
