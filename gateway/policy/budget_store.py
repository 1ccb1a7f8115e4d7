"""Where budgets' totals are shared: a protocol, its in-memory twin, and Postgres. One contract suite runs over both."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol

from auth.details import Period
from auth.storage import Connections
from gateway.policy.budgets import Spend, Total

LOOK_BACK_S = 15.0
"""A row recorded earlier may commit later: each reading begins this much before the last one."""


class BudgetStore(Protocol):
    """Adds up what processes spend; both in one step, so that what is told includes what was said."""

    async def exchange(self, spends: Sequence[Spend], *, everything: bool) -> list[Total]:
        """Add `spends`, and return every total that changed since the last call, `everything`: all of live periods.

        Adds all or nothing. Raises when the store is away.
        """
        ...


class InMemoryBudgets:
    """The twin: one book that several processes' stores share. `broken` set to an exception makes exchanges fail."""

    def __init__(self, shared: dict[tuple[str, Period], tuple[int, int]] | None = None) -> None:
        self.shared = {} if shared is None else shared
        self.broken: Exception | None = None

    async def exchange(self, spends: Sequence[Spend], *, everything: bool) -> list[Total]:
        """See `BudgetStore.exchange`."""
        del everything
        if self.broken is not None:
            raise self.broken
        for spend in spends:
            index, nanos = self.shared.get((spend.bucket, spend.period), (spend.index, 0))
            if spend.index > index:
                index, nanos = spend.index, 0
            if spend.index == index:
                self.shared[spend.bucket, spend.period] = index, nanos + spend.nanos
        return [Total(bucket, period, index, nanos) for (bucket, period), (index, nanos) in self.shared.items()]


class PostgresBudgets:
    """Rows of `token_budget`, one a budget: its present period and what was spent in it."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._read_to: datetime | None = None

    async def exchange(self, spends: Sequence[Spend], *, everything: bool) -> list[Total]:
        """See `BudgetStore.exchange`."""
        read_to = None if everything else self._read_to
        async with self._connections.platform() as connection:
            if spends:
                # In the order of the key: two processes that add to the same rows do not wait for each other in a ring.
                await connection.execute(_ADD, *_columns(spends))
            now = await connection.fetchval("select clock_timestamp()")
            if read_to is None:
                rows = await connection.fetch(_ALL)
            else:
                rows = await connection.fetch(_SINCE, read_to, LOOK_BACK_S)
        self._read_to = now
        return [Total(row["bucket"], row["period"], row["index"], row["nanos"]) for row in rows]


def _columns(spends: Sequence[Spend]) -> list[list[object]]:
    ordered = sorted(spends, key=lambda each: (each.bucket, each.period))
    ends = [None if each.ends_at is None else datetime.fromtimestamp(each.ends_at, UTC) for each in ordered]
    return [
        [each.tenant_id for each in ordered],
        [each.bucket for each in ordered],
        [each.period for each in ordered],
        [each.index for each in ordered],
        [each.nanos for each in ordered],
        [*ends],
    ]


_ADD = """
insert into token_budget as held (tenant_id, bucket, period, index, nanos, ends_at)
select said.* from unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::timestamptz[])
  as said (tenant_id, bucket, period, index, nanos, ends_at)
join tenant on tenant.id = said.tenant_id  -- one that is deleted meanwhile must not hold the others up
on conflict (bucket, period) do update set
  index = greatest(held.index, excluded.index),
  nanos = case when excluded.index > held.index then excluded.nanos
               when excluded.index = held.index then held.nanos + excluded.nanos
               else held.nanos end,
  ends_at = case when excluded.index > held.index then excluded.ends_at else held.ends_at end,
  recorded_at = clock_timestamp()
"""
_ALL = "select bucket, period, index, nanos from token_budget where ends_at is null or ends_at > now()"
_SINCE = (
    "select bucket, period, index, nanos from token_budget"
    " where recorded_at > $1::timestamptz - make_interval(secs => $2)"
)
