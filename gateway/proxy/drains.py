"""Tells the database what this process still has under way on secrets that are being replaced.

A rotation may switch an old secret off when every process has said that nothing is under way on it. So each process
registers before it serves, and says goodbye when it has stopped. While a version drains, it writes how many requests
are still on it, once for each change; it only speaks of drains that its own memory knows of, which means that it gives
the old secret to no new request. A process that falls silent counts as still using it: the drain's deadline bounds
that.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from math import inf
from typing import Final
from uuid import UUID

from uuid_utils.compat import uuid7

from auth.errors import Unavailable
from auth.storage import Connections
from gateway.proxy.runtime import TenantRuntime

logger = logging.getLogger(__name__)

EVERY_S: Final = 0.5
BEAT_S: Final = 5.0
SILENT_S: Final = 600.0
"""A process that was not heard of for so long is forgotten: killed, or cut off beyond what a drain waits for."""
GOODBYE_S: Final = 2.0

_BEAT = """
insert into serving_process (id) values ($1) on conflict (id) do update set seen_at = now()
returning xmax = 0 as is_new
"""
_FORGET = "delete from serving_process where seen_at < now() - make_interval(secs => $1)"
_TELL = """
insert into drain_report (process_id, version_id, tenant_id, since, in_flight)
select $1, v.id, v.tenant_id, told.since, told.in_flight
from unnest($2::uuid[], $3::timestamptz[], $4::integer[]) as told (version_id, since, in_flight)
join key_version v on v.id = told.version_id
on conflict (process_id, version_id) do update set since = excluded.since, in_flight = excluded.in_flight
"""
_RETRACT = "delete from drain_report where process_id = $1 and version_id = any($2::uuid[])"


@dataclass(frozen=True, slots=True)
class Use:
    """How many requests are under way on a version since it drains."""

    since: datetime
    in_flight: int


def uses_of(tenants: Iterable[TenantRuntime]) -> dict[UUID, Use]:
    """Count what is under way on every draining version, in all pools of its tenant: keys may have moved."""
    found: dict[UUID, Use] = {}
    for tenant in tenants:
        if not tenant.draining:
            continue
        open_leases: Counter[str] = Counter()
        for pool in tenant.pools.values():
            open_leases += pool.balancer.in_flight_on(tenant.draining.keys())
        for endpoint_id, version in tenant.draining.items():
            found[version.version_id] = Use(version.since, open_leases[endpoint_id])
    return found


class DrainReporter:
    """One process's reports. `register` before the first request, `run` as a task, `leave` after the last one.

    `tenants` gives those with draining versions (others do no harm); `clock` is monotonic seconds.
    """

    def __init__(
        self, tenants: Callable[[], Iterable[TenantRuntime]], connections: Connections, *, clock: Callable[[], float]
    ) -> None:
        self._tenants = tenants
        self._connections = connections
        self._clock = clock
        self._told: dict[UUID, Use] = {}
        self._beat_at = -inf
        self._forget_at = inf
        self.process_id = uuid7()

    async def register(self) -> None:
        """Make this process known; while the database is away it is `run` that does, as soon as it is back."""
        with suppress(Unavailable, OSError, TimeoutError):
            await self.round()

    async def run(self) -> None:
        """Report for ever."""
        is_away = False
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.round()
                is_away = False
            except Exception as error:  # noqa: BLE001 - a loop's boundary: it is told again in the next round
                level = logging.DEBUG if is_away else logging.WARNING
                is_away = True
                logger.log(level, "requests under way on old secrets not reported", extra={"reason": repr(error)})

    async def round(self) -> None:
        """Write what changed since the last round, and every `BEAT_S` that this process lives."""
        now = self._clock()
        uses = uses_of(self._tenants())
        changed = {version_id: use for version_id, use in uses.items() if self._told.get(version_id) != use}
        ended = self._told.keys() - uses.keys()
        if not changed and not ended and now < self._beat_at:
            return
        if now - self._beat_at > BEAT_S:
            # The database was away, for all processes: they get the time to be heard before any of them is forgotten.
            self._forget_at = now + 4 * BEAT_S
        forgets = now >= self._forget_at
        async with self._connections.platform() as connection:
            if await connection.fetchval(_BEAT, self.process_id):
                changed = uses  # it was forgotten, and with it what it had told
            if changed:
                await connection.execute(
                    _TELL,
                    self.process_id,
                    list(changed),
                    [use.since for use in changed.values()],
                    [use.in_flight for use in changed.values()],
                )
            if ended:
                await connection.execute(_RETRACT, self.process_id, list(ended))
            if forgets:
                await connection.execute(_FORGET, SILENT_S)
        self._told = uses
        self._beat_at = now + BEAT_S
        if forgets:
            self._forget_at = now + SILENT_S / 10

    async def leave(self) -> None:
        """Say goodbye: what began here has ended."""
        with suppress(Unavailable, OSError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S), self._connections.platform() as connection:
                await connection.execute("delete from serving_process where id = $1", self.process_id)
