"""The rows of shared quotas in Postgres: two statements a batch, whatever its size.

The table is unlogged: rows live for seconds, and what a crash loses the processes put back from memory (`row.later`).
Rows that somebody else is putting back just now are skipped, not waited for, so that batches cannot deadlock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import asyncpg

from gateway.leases.notices import CHANNEL
from gateway.leases.store import Key, Stored, Swap
from gateway.standing_connection import StandingConnection

if TYPE_CHECKING:
    from gateway.database import Postgres

_READ: Final = """
select extract(epoch from clock_timestamp())::float8 as clock, l.tenant_id, l.quota_id, l.version, l.state
from (select) one
left join quota_lease l
  on (l.tenant_id, l.quota_id) in (select * from unnest($1::uuid[], $2::text[]))
"""
_SWAP: Final = """
with given as (
  select * from unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::bytea[])
    as given (tenant_id, quota_id, before, version, state)
), free as (
  select tenant_id, quota_id, given.version as next, given.state as put
  from quota_lease l join given using (tenant_id, quota_id)
  where l.version = given.before
  order by tenant_id, quota_id
  for update of l skip locked
), changed as (
  update quota_lease l set version = free.next, state = free.put, updated_at = now()
  from free where l.tenant_id = free.tenant_id and l.quota_id = free.quota_id
  returning l.tenant_id, l.quota_id
), made as (
  insert into quota_lease (tenant_id, quota_id, version, state)
  select tenant_id, quota_id, version, state from given where before = 0
  order by tenant_id, quota_id
  on conflict do nothing
  returning tenant_id, quota_id
)
select * from changed union all select * from made
"""
_ANNOUNCE: Final = "select pg_notify($1, notice) from unnest($2::text[]) notice"


class PostgresLeaseStore:
    """See `LeaseStore`; works for all tenants at once, in the platform's scope.

    On a connection of its own: on a crowded machine round trips are what an exchange's time goes into.
    """

    def __init__(self, postgres: Postgres) -> None:
        self._connection = StandingConnection(postgres)
        self._running: set[asyncio.Task[list[asyncpg.Record]]] = set()

    async def read(self, keys: Sequence[Key]) -> tuple[float, dict[Key, Stored]]:
        """See `LeaseStore.read`."""
        rows = await self._fetch(_READ, [key[0] for key in keys], [key[1] for key in keys])
        found = {
            (row["tenant_id"], row["quota_id"]): Stored(row["version"], row["state"])
            for row in rows
            if row["tenant_id"] is not None
        }
        return float(rows[0]["clock"]), found

    async def swap(self, swaps: Sequence[Swap]) -> set[Key]:
        """See `LeaseStore.swap`."""
        ordered = sorted(swaps, key=lambda swap: swap.key)
        rows = await self._fetch(
            _SWAP,
            [swap.key[0] for swap in ordered],
            [swap.key[1] for swap in ordered],
            [swap.before for swap in ordered],
            [swap.version for swap in ordered],
            [swap.state for swap in ordered],
        )
        return {(row["tenant_id"], row["quota_id"]) for row in rows}

    async def announce(self, notices: Sequence[str]) -> None:
        """See `LeaseStore.announce`."""
        await self._fetch(_ANNOUNCE, CHANNEL, notices)

    async def _fetch(self, query: str, *arguments: Sequence[object]) -> list[asyncpg.Record]:
        # Who gives up waiting does not break it off: to connect anew is what a slow server can bear least.
        task = asyncio.create_task(self._connection.fetch(query, *arguments), name="lease statement")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[list[asyncpg.Record]]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # heard, whether or not anybody still waits

    async def close(self) -> None:
        """Close the connection; what is still under way is given up."""
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._connection.close()
