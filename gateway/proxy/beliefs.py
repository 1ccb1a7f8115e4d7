"""Keeps what was learned of limiters over a restart, and lets it be read: off the requests' way, in Postgres.

A row a quota and model family, written when it has changed, every `EVERY_S`. `state` is what a restart takes over,
`report` what people are shown (`GET /api/v1/quotas/{id}/beliefs`). All processes write the same rows, each what it has
learned; the latest stands. While the database is away nothing is lost but the time since the last round.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol
from uuid import UUID

from auth.errors import Unavailable
from gateway.balancing.book import Beliefs
from gateway.balancing.predictor import MAX_AGE_S
from gateway.balancing.sharing import SharedQuotas
from gateway.balancing.view import LedgerView
from gateway.database import Postgres
from gateway.proxy.runtime import TenantRuntime
from gateway.unhurried import unhurried

logger = logging.getLogger(__name__)

EVERY_S: Final = 45.0
LOAD_S: Final = 3.0
"""The start waits no longer for what was known: it is an advantage, no need."""
BATCH: Final = 500
_LOAD = """
select tenant_id, quota_id, family, state from limiter_belief where updated_at > now() - make_interval(secs => $1)
"""
_SAVE = """
insert into limiter_belief (tenant_id, quota_id, family, state, report)
select given.tenant_id, given.quota_id, given.family, given.state, given.report
from unnest($1::uuid[], $2::uuid[], $3::text[], $4::jsonb[], $5::jsonb[])
  as given (tenant_id, quota_id, family, state, report)
join quota q on q.id = given.quota_id and q.tenant_id = given.tenant_id
order by given.tenant_id, given.quota_id, given.family
on conflict (quota_id, family) do update
  set state = excluded.state, report = excluded.report, updated_at = now()
"""


@dataclass(frozen=True, slots=True)
class Saved:
    """One row; `state` and `report` are plain JSON values."""

    tenant_id: UUID
    quota_id: UUID
    family: str
    state: Mapping[str, object]
    report: Mapping[str, object]


class BeliefStore(Protocol):
    """Where rows are kept."""

    async def load(self, *, max_age_s: float) -> list[Saved]:
        """Give all rows that are younger; `report` may be empty."""

    async def save(self, rows: Sequence[Saved]) -> None:
        """Write rows; those of quotas that are gone are left out."""


class InMemoryBeliefStore:
    """The twin. `quotas` are those that exist, None: all; `away` set: every call fails."""

    def __init__(self, quotas: set[UUID] | None = None) -> None:
        self.rows: dict[tuple[UUID, str], Saved] = {}
        self.quotas = quotas
        self.away = False

    async def load(self, *, max_age_s: float) -> list[Saved]:
        """See `BeliefStore.load`; nothing gets old here."""
        del max_age_s
        self._reach()
        return list(self.rows.values())

    async def save(self, rows: Sequence[Saved]) -> None:
        """See `BeliefStore.save`."""
        self._reach()
        for row in rows:
            if self.quotas is None or row.quota_id in self.quotas:
                self.rows[row.quota_id, row.family] = row

    def _reach(self) -> None:
        if self.away:
            raise Unavailable("The database is away.")


class PostgresBeliefStore:
    """The table `limiter_belief`, for all tenants at once, in the platform's scope."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def load(self, *, max_age_s: float) -> list[Saved]:
        """See `BeliefStore.load`."""
        async with self._postgres.platform() as connection:
            rows = await connection.fetch(_LOAD, max_age_s)
        return [Saved(row["tenant_id"], row["quota_id"], row["family"], json.loads(row["state"]), {}) for row in rows]

    async def save(self, rows: Sequence[Saved]) -> None:
        """See `BeliefStore.save`."""
        async with self._postgres.platform() as connection:
            await connection.execute(
                _SAVE,
                [row.tenant_id for row in rows],
                [row.quota_id for row in rows],
                [row.family for row in rows],
                [json.dumps(row.state) for row in rows],
                [json.dumps(row.report) for row in rows],
            )


class BeliefKeeper:
    """Loads at the start, saves in rounds. `load`, then `run` as a task; `close` saves once more.

    `tenants` gives the runtimes in memory; `clock` is the balancers' clock.
    """

    def __init__(
        self,
        store: BeliefStore,
        tenants: Callable[[], Iterable[TenantRuntime]],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._tenants = tenants
        self._clock = clock
        self._known: dict[UUID, dict[str, dict[str, Mapping[str, object]]]] = {}
        self._written: dict[tuple[UUID, str], tuple[float, Mapping[str, object]]] = {}
        self.saved = 0

    async def load(self) -> None:
        """Read what was known; a store that is away or slow means to start without."""
        try:
            async with asyncio.timeout(LOAD_S):
                rows = await self._store.load(max_age_s=MAX_AGE_S)
        except (Unavailable, OSError, TimeoutError) as error:
            logger.warning("what was learned of limiters is not loaded", extra={"reason": repr(error)})
            return
        for row in rows:
            self._known.setdefault(row.tenant_id, {}).setdefault(str(row.quota_id), {})[row.family] = row.state

    def recall(self, tenant_id: UUID) -> Beliefs:
        """Give what was known of a tenant's limiters, once: what is learned from then on is newer."""
        return self._known.pop(tenant_id, {})

    async def run(self) -> None:
        """Save for ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.round()
            except Exception as error:  # noqa: BLE001 - a loop's boundary: the next round writes it all
                logger.warning("what was learned of limiters is not saved", extra={"reason": repr(error)})

    async def close(self) -> None:
        """Save what is new, if the store answers soon."""
        with suppress(Unavailable, OSError, TimeoutError):
            async with asyncio.timeout(LOAD_S):
                await self.round()

    async def round(self) -> None:
        """Write the rows that have changed since they were written last."""
        due: list[Saved] = []
        async for tenant in unhurried(self._tenants()):
            due += self._changed(tenant)
        for start in range(0, len(due), BATCH):
            batch = due[start : start + BATCH]
            await self._store.save(batch)
            self.saved += len(batch)
            for row in batch:
                self._written[row.quota_id, row.family] = self._clock(), _lasting(row.state)

    def _changed(self, tenant: TenantRuntime) -> list[Saved]:
        now, shared = self._clock(), tenant.book.shared
        exported = tenant.book.beliefs(now)
        views = {(quota_id, view.family): view for quota_id, view in tenant.book.views(now) if quota_id in exported}
        return [
            Saved(
                tenant.tenant_id,
                UUID(quota_id),
                family,
                state,
                {**report_of(views.get((quota_id, family))), **_names_of(quota_id, shared)},
            )
            for quota_id, families in exported.items()
            for family, state in families.items()
            if self._is_due(UUID(quota_id), family, state, now)
        ]

    def _is_due(self, quota_id: UUID, family: str, state: Mapping[str, object], now: float) -> bool:
        """What has not changed is written again before it counts as too old to be taken over."""
        written = self._written.get((quota_id, family))
        return written is None or written[1] != _lasting(state) or now - written[0] >= MAX_AGE_S / 4.0


def _lasting(state: Mapping[str, object]) -> Mapping[str, object]:
    """Give a state without its time, which alone is no change."""
    return {name: value for name, value in state.items() if name != "at"}


def _names_of(quota_id: str, shared: SharedQuotas) -> dict[str, Any]:
    stands = shared.stands_for(quota_id)
    return {"known_as": list(shared.names(quota_id)), "counted_as": None if stands == quota_id else stands}


def report_of(view: LedgerView | None) -> dict[str, Any]:
    """Say what is believed of one limiter, and how wrong it was, for people; None: nothing of itself."""
    if view is None:
        return {"limits": {}, "sources": {}, "misconfigured": {}, "rate_limited": 0}
    report: dict[str, Any] = {
        "limits": {name: limit for name, (limit, _) in view.limits.items()},
        "sources": dict(view.sources),
        "misconfigured": {
            name: {"configured": configured, "told": told} for name, (configured, told) in view.misconfigured.items()
        },
        "rate_limited": view.rate_limited,
    }
    if view.belief is not None:
        report["belief"] = asdict(view.belief)
    return report
