"""Periodic jobs of the installation, run by one leader: whoever holds a session-level advisory lock.

The lock ends with its connection, so a killed leader is replaced at once. One that says nothing for `SILENT_S` (it was
stopped, its machine is gone) has its connection ended by the server, which would otherwise wait for hours. It notices
when it wakes, jobs in mid-run: they must stay correct when two processes run them, by idempotent statements or
`for update skip locked`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg

from gateway.database import AWAY, DatabaseAway, Postgres
from gateway.metering.explanations import KEPT_DAYS, PostgresExplanationStore
from gateway.policy.rate_store import purge_rates
from gateway.telemetry import Metrics

log = logging.getLogger(__name__)

LEADER_LOCK: Final = 0x6C6C6D6A6F627301
SILENT_S: Final = 20.0
"""Longer than a leader that cannot reach the server any more goes on leading."""
_RETRY_S: Final = 2.0
_BEAT: Final = "select pg_is_in_recovery()"
_PARTITION_DAYS_AHEAD: Final = 8
_IDEMPOTENCY_KEPT_HOURS: Final = 24


@dataclass(frozen=True, slots=True)
class Job:
    """`run` is called every `every_s` seconds, first right after this process became leader."""

    name: str
    every_s: float
    run: Callable[[], Awaitable[None]]


class Jobs:
    """Runs `jobs` while this process is the leader; `run` as a task, cancel it to stop.

    A leader that the server does not hear for `silent_s` is one no more.
    """

    def __init__(
        self,
        postgres: Postgres,
        jobs: Sequence[Job],
        metrics: Metrics,
        *,
        rng: random.Random,
        silent_s: float = SILENT_S,
    ) -> None:
        self._postgres = postgres
        self._jobs = jobs
        self._metrics = metrics
        self._rng = rng
        self._silent_s = silent_s
        for job in jobs:  # a count that begins with its first failure shows Prometheus no increase
            for result in ("done", "failed"):
                metrics.job_runs.labels(job.name, result)

    async def run(self) -> None:
        """Try to become leader, for ever; lead until the lock's connection is lost."""
        while True:
            try:
                connection = await self._postgres.connect_directly()
                try:
                    await self._lead_when_free(connection)
                finally:
                    connection.terminate()
            except (DatabaseAway, *AWAY) as error:
                log.info("jobs: the database is away", extra={"reason": type(error).__name__})
            except Exception as error:  # noqa: BLE001 - a loop's boundary: a server that refuses may take us later
                log.warning("jobs: cannot lead", extra={"reason": f"{type(error).__name__}: {error}"})
            await asyncio.sleep(_RETRY_S * (0.5 + self._rng.random()))

    async def _lead_when_free(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        await connection.execute(f"set idle_session_timeout = {round(self._silent_s * 1000)}")
        # A standby lends the lock too, once more beside its primary.
        while not await connection.fetchval(_BEAT):
            if await connection.fetchval("select pg_try_advisory_lock($1)", LEADER_LOCK):
                await self._lead(connection)
                return
            await asyncio.sleep(_RETRY_S * (0.5 + self._rng.random()))

    async def _lead(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        log.info("jobs: this process leads")
        self._metrics.leader.set(1)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._repeat(job), name=f"job {job.name}") for job in self._jobs]
                # The lock lives on this connection: a leader that cannot reach the server any more must stop leading.
                while not connection.is_closed():
                    await asyncio.sleep(_RETRY_S)
                    with contextlib.suppress(*AWAY):
                        if not await connection.fetchval(_BEAT, timeout=self._silent_s / 2):
                            continue
                    break
                for task in tasks:
                    task.cancel()
        finally:
            self._metrics.leader.set(0)
            log.info("jobs: this process leads no more")

    async def _repeat(self, job: Job) -> None:
        while True:
            try:
                await job.run()
                self._metrics.job_runs.labels(job.name, "done").inc()
            except Exception as error:  # noqa: BLE001 - a loop's boundary: one failed run must not end the job
                self._metrics.job_runs.labels(job.name, "failed").inc()
                log.warning("job failed", extra={"job": job.name, "reason": f"{type(error).__name__}: {error}"})
            await asyncio.sleep(job.every_s * (0.9 + 0.2 * self._rng.random()))


def maintenance_jobs(postgres: Postgres) -> list[Job]:
    """Return the jobs that keep the tables in shape: usage partitions ahead, what is old out."""

    async def partitions() -> None:
        async with postgres.platform() as connection:
            made = await connection.fetchval(
                "select usage_partitions($1, $2)", datetime.now(UTC).date(), _PARTITION_DAYS_AHEAD
            )
        if made:
            log.info("jobs: usage partitions made", extra={"days": made})

    async def answered() -> None:
        async with postgres.platform() as connection:
            await connection.execute(
                "delete from idempotency_key where created_at < now() - make_interval(hours => $1)",
                _IDEMPOTENCY_KEPT_HOURS,
            )

    async def budgets() -> None:
        async with postgres.platform() as connection:
            # Nobody carries a token's own total for longer than the token; a client's goes with its tenant.
            await connection.execute(
                "delete from token_budget where ends_at < now() - interval '1 day'"
                " or (ends_at is null and recorded_at < now() - interval '400 days' and bucket not like 'lpc\\_%')"
            )

    async def explained() -> None:
        await PostgresExplanationStore(postgres).purge(datetime.now(UTC) - timedelta(days=KEPT_DAYS))

    async def leases() -> None:
        async with postgres.platform() as connection:
            # What was used of a day's limit is remembered longer than a day.
            await connection.execute("delete from quota_lease where updated_at < now() - interval '2 days'")

    return [
        Job("usage-partitions", 3600.0, partitions),
        Job("idempotency-keys", 600.0, answered),
        Job("budgets", 3600.0, budgets),
        Job("rates", 60.0, lambda: purge_rates(postgres)),
        Job("explanations", 3600.0, explained),
        Job("quota-leases", 3600.0, leases),
    ]
