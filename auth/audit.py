"""What auth tells the audit trail; `tenants.audit` fulfils it in the same transaction as the change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession


@dataclass(frozen=True, slots=True)
class Event:
    """Who did what to what: `action` is `noun.verb`, `subject` `noun:id`, `detail` JSON values without a secret."""

    tenant_id: UUID
    at: datetime
    actor: str
    action: str
    subject: str
    address: str | None = None
    request_id: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


class Trail(Protocol):
    """Appends events to a tenant's trail."""

    async def append(self, session: AsyncSession, event: Event) -> None:
        """Append one event as the last statement of the session's transaction."""


class InMemoryTrail:
    """The twin for tests: keeps the events in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def append(self, session: AsyncSession, event: Event) -> None:  # noqa: ARG002 - there is no transaction here
        """Keep the event."""
        self.events.append(event)
