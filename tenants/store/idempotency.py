"""Idempotency-Key: a POST that is sent twice is done once (draft-ietf-httpapi-idempotency-key-header).

The claim is a row inserted in the same transaction as the work: a second request with the same key waits for the first
to commit and then finds its answer, or finds nothing when the first one failed, and does the work itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from auth.errors import Conflict, Invalid
from tenants.models import IdempotencyKey

LIFETIME: Final = timedelta(hours=24)
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered the first time: never with a secret in it."""

    status: int
    body: dict[str, Any]


async def claim(
    session: AsyncSession, tenant_id: UUID, key: str, request_hash: bytes, *, at: datetime
) -> Answer | None:
    """Take `key` for this request: None to go on, or the answer that it already got.

    `Conflict` when the key was used for a different request. Keys are forgotten after 24 hours.
    """
    if not _KEY.fullmatch(key):
        raise Invalid(
            "The Idempotency-Key header is malformed.", hint="Send 1 to 255 visible ASCII characters, such as a UUID."
        )
    mine = (col(IdempotencyKey.tenant_id) == tenant_id, col(IdempotencyKey.key) == key)
    await session.execute(delete(IdempotencyKey).where(*mine, col(IdempotencyKey.created_at) < at - LIFETIME))
    statement = (
        insert(IdempotencyKey)
        .values(tenant_id=tenant_id, key=key, request_hash=request_hash, created_at=at)
        .on_conflict_do_nothing()
        .returning(col(IdempotencyKey.key))
    )
    if (await session.execute(statement)).scalar_one_or_none() is not None:
        return None
    row = (await session.execute(select(IdempotencyKey).where(*mine))).scalar_one()
    if row.request_hash != request_hash:
        raise Conflict(
            "This Idempotency-Key was used for a different request.", hint="Use a new key for each new request."
        )
    if row.status is None or row.response is None:
        raise LookupError("an idempotency claim was committed without its answer")
    return Answer(row.status, row.response)


async def settle(session: AsyncSession, tenant_id: UUID, key: str, answer: Answer) -> None:
    """Store the answer of a claimed key."""
    row = await session.get_one(IdempotencyKey, (tenant_id, key))
    row.status, row.response = answer.status, answer.body
    await session.flush()
