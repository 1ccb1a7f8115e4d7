"""Failed client authentications on their way to the audit trail: counted together, so that a flood stays a few rows.

Nothing is looked up or written while the request is answered: that would tell by its time whether a client exists.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import sqlalchemy as sa
from sqlmodel import col

from auth.audit import Event, Trail
from auth.models import OAuthClient
from auth.principal import PLATFORM_TENANT_ID
from auth.storage import Sessions

log = logging.getLogger(__name__)

MAX_PAIRS = 256
"""Pairs of client and address that are told apart between two flushes; further ones are counted as one."""

FLUSH_EVERY_S = 10.0
_OTHERS = ("", "")


@dataclass(slots=True)
class _Failures:
    count: int = 0
    request_id: str = ""


class FailedLogins:
    """The failures of one process since its last flush. `clock` is Unix seconds."""

    def __init__(self, sessions: Sessions, trail: Trail, clock: Callable[[], float]) -> None:
        self._sessions = sessions
        self._trail = trail
        self._clock = clock
        self._noted: dict[tuple[str, str], _Failures] = {}

    def note(self, client_id: str, address: str, request_id: str) -> None:
        """Count one failure; `client_id` is what the request claimed."""
        pair = (client_id, address)
        if pair not in self._noted and len(self._noted) >= MAX_PAIRS:
            pair = _OTHERS
        failures = self._noted.setdefault(pair, _Failures())
        failures.count += 1
        failures.request_id = request_id

    async def flush(self) -> int:
        """Write the counts: to the claimed clients' tenants, in one sum to the operators; returns the events."""
        noted, self._noted = self._noted, {}
        if not noted:
            return 0
        claimed = {client_id for client_id, _ in noted if client_id and "\x00" not in client_id}
        async with self._sessions.platform() as session:
            query = sa.select(col(OAuthClient.client_id), col(OAuthClient.tenant_id)).where(
                col(OAuthClient.client_id).in_(claimed)
            )
            owners: dict[str, UUID] = {row[0]: row[1] for row in (await session.execute(query)).all()}
        now = datetime.fromtimestamp(self._clock(), UTC)
        events: dict[UUID, list[Event]] = defaultdict(list)
        unknown: list[tuple[str, _Failures]] = []
        for (client_id, address), failures in noted.items():
            owner = owners.get(client_id)
            if owner is None:
                unknown.append((address, failures))
                continue
            events[owner].append(
                Event(
                    tenant_id=owner,
                    at=now,
                    actor=client_id,
                    action="client.authentication_failed",
                    subject=f"client:{client_id}",
                    address=address or None,
                    request_id=failures.request_id or None,
                    detail={"count": failures.count},
                )
            )
        if unknown:
            events[PLATFORM_TENANT_ID].append(
                Event(
                    tenant_id=PLATFORM_TENANT_ID,
                    at=now,
                    actor="nobody",
                    action="client.authentication_failed",
                    subject="client:unknown",
                    detail={
                        "count": sum(each.count for _, each in unknown),
                        "addresses": sorted({address for address, _ in unknown if address})[:20],
                    },
                )
            )
        for tenant_id, mine in events.items():
            for event in mine:
                async with self._sessions.tenant(tenant_id) as session:
                    await self._trail.append(session, event)
        return sum(len(each) for each in events.values())

    async def run(self) -> None:
        """Flush for ever."""
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            try:
                await self.flush()
            except Exception as error:  # noqa: BLE001 - a loop's boundary: the log has each failure besides
                log.warning("failed authentications not recorded", extra={"reason": repr(error)})
