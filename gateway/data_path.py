"""Builds the data path of one process out of its parts, and starts and stops them in the right order."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from uuid import UUID

from auth.bearer import ProofChecker
from auth.dpop import ProofCache
from auth.token_uses import TokenUses
from auth.vouching import AssertionSigner
from gateway.database import Change, Postgres
from gateway.guarded_calls import GuardedCalls
from gateway.health import Health
from gateway.leases.driver import LeaseDriver
from gateway.leases.notices import CHANNEL as LEASE_NEWS
from gateway.leases.postgres_store import PostgresLeaseStore
from gateway.metering.event import UsageEvent
from gateway.metering.explanations import ExplanationRecorder, PostgresExplanationStore
from gateway.metering.pricing import load_prices
from gateway.metering.recorder import UsageRecorder
from gateway.metering.spool import UsageSpool
from gateway.metering.store import PostgresUsageStore
from gateway.places import places_of
from gateway.policy.allowance import InMemoryAllowances
from gateway.policy.budget_sharing import BudgetSharing
from gateway.policy.budget_store import PostgresBudgets
from gateway.policy.budgets import BudgetBook
from gateway.policy.rate_sharing import RateSharing
from gateway.policy.rate_store import PostgresRates
from gateway.policy.rates import RateLog, Use
from gateway.proxy.app import DataPath, Verifier
from gateway.proxy.beliefs import BeliefKeeper, PostgresBeliefStore
from gateway.proxy.census import Census
from gateway.proxy.directory import Directory
from gateway.proxy.drains import DrainReporter
from gateway.proxy.federation import TokenKeeper
from gateway.proxy.intake import IntakeLimits
from gateway.proxy.prober import Prober
from gateway.proxy.runtime import Workshop
from gateway.settings import Settings
from gateway.state_file import when
from gateway.teardown import finish, stop
from gateway.telemetry import Metrics
from gateway.traffic_metrics import TrafficMetrics
from gateway.upstream.connect import DirectConnector, EgressProxy
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.pool import ConnectionPool, PoolLimits
from tenants.datakeys import DataKeys
from tenants.sealed_state import State
from tenants.snapshot import SnapshotLoader

log = logging.getLogger(__name__)

_FIRST_TOKENS_S = 5.0
"""So long the start waits for the federated keys' first tokens."""
_LEAVE_S = 1.0
"""How long tasks may take to leave off."""
_GOODBYES_S = 5.2
"""How long the goodbyes may take together; usage rows are tried for five seconds."""


class TokenUseRecorder:
    """Notes tokens' uses by their usage rows: a `Recorder` beside the one that stores them."""

    def __init__(self, uses: TokenUses) -> None:
        self._uses = uses

    def record(self, row: UsageEvent) -> None:
        """Note one use."""
        self._uses.note(row.token_id, row.at.timestamp())


class DataPathParts:
    """The running parts: `app` serves, `changed` takes notices, `start` and `close` belong to the process's life."""

    def __init__(
        self,
        settings: Settings,
        *,
        postgres: Postgres,
        sealer: DataKeys,
        verifier: Verifier,
        metrics: Metrics,
        health: Health,
        assertions: AssertionSigner,
        proofs: ProofCache | None = None,
        uses: TokenUses | None = None,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        rng = random.Random()  # noqa: S311 - spreads load; nothing secret is drawn from it
        egress = EgressPolicy(allow_private=settings.allow_private_upstreams)
        proxy = None
        if settings.egress_proxy is not None:
            proxy = EgressProxy.parse(settings.egress_proxy.reveal(), settings.no_proxy)
        self._drain_s = settings.drain_s
        prices = load_prices(settings.prices_path)
        unix_offset_s = unix_clock() - clock()
        self._leases = LeaseDriver(
            PostgresLeaseStore(postgres),
            lessee=f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}",
            clock=clock,
            unix_offset_s=unix_offset_s,
            rng=rng,
            on_granted=self._granted,
        )
        self._beliefs = BeliefKeeper(PostgresBeliefStore(postgres), lambda: self._directory, clock=clock)
        self._loader = SnapshotLoader(postgres, sealer, warm=sealer.warm)
        self._pool = ConnectionPool(
            DirectConnector(egress, proxy=proxy),
            # Most streams of a process may go to one provider: there is no smaller bound for a single one.
            PoolLimits(per_origin=settings.max_upstream_connections, total=settings.max_upstream_connections),
        )
        self._tokens = TokenKeeper(
            GuardedCalls(self._pool, egress),
            assertions,
            issuer=settings.issuer or "",
            clock=clock,
            unix_clock=unix_clock,
            rng=rng,
        )
        self._directory = Directory(
            self._loader,
            Workshop(
                egress,
                clock,
                rng,
                unix_offset_s=unix_offset_s,
                prices=prices,
                home_region=settings.region,
                leasing=self._leases.desk.of,
                tokens=self._tokens,
                predicts=settings.prediction,
                recall=self._beliefs.recall,
            ),
            poll_s=settings.snapshot_poll_s,
        )
        self._tokens.changed = self._directory.token_changed
        self._prober = Prober(self._directory, self._pool, clock=clock, token_refused=self._tokens.refused)
        self._drains = DrainReporter(self._directory.draining, postgres, clock=clock)
        self._tasks: list[asyncio.Task[None]] = []
        book, rates = BudgetBook(), RateLog()
        allowances = InMemoryAllowances(book=book, rates=rates)

        def learn(uses: Iterable[Use]) -> None:
            allowances.learn(uses, now=unix_clock())

        self._rates = RateSharing(rates, PostgresRates(postgres), learn, clock=unix_clock)
        self._budgets = BudgetSharing(book, PostgresBudgets(postgres), clock=unix_clock)
        self._spool: UsageSpool | None = None
        if settings.usage_spool is not None:
            self._spool = UsageSpool(settings.usage_spool, max_bytes=settings.usage_spool_bytes, clock=clock)
        self._usage_store = PostgresUsageStore(postgres)
        self._usage = UsageRecorder(self._usage_store, max_rows=settings.usage_rows, spool=self._spool)
        self._explanations = ExplanationRecorder(PostgresExplanationStore(postgres), clock)
        self.app = DataPath(
            verifier=verifier,
            proofs=ProofChecker(settings.issuer or "", unix_clock, used=proofs),
            directory=self._directory,
            upstream=self._pool,
            recorders=(self._usage, TrafficMetrics(metrics), *([TokenUseRecorder(uses)] if uses else [])),
            prices=prices,
            rng=rng,
            allowances=allowances,
            explanations=self._explanations,
            places=places_of(settings, clock),
            limits=IntakeLimits(
                max_body_bytes=settings.max_body_bytes,
                max_upload_bytes=settings.max_upload_bytes,
                body_s=settings.body_timeout_s,
            ),
            clock=clock,
            unix_clock=unix_clock,
        )
        self._health = health
        health.require("tenants", lambda: None if self._directory.is_ready else "Tenants are not loaded yet.")
        self._publish(metrics)

    def changed(self, change: Change) -> None:
        """Take one notice of a committed change."""
        self._directory.changed(change.table, change.tenant_id)

    @property
    def notices(self) -> Mapping[str, Callable[[str], None]]:
        """Who takes the notices of other channels than that of changes."""
        return {LEASE_NEWS: self._leases.heard}

    async def start(self) -> None:
        """Load the tenants and start writing usage; returns also when the database is away, and keeps trying."""
        self._usage.start()
        self._explanations.start()
        await self._drains.register()
        await self._beliefs.load()
        await self._directory.start()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_TOKENS_S):
                await self._tokens.settled()
        await self._budgets.exchange()
        await self._rates.exchange()
        self._tasks = [
            asyncio.create_task(self._rates.run(), name="rates"),
            asyncio.create_task(self._budgets.run(), name="budgets"),
            asyncio.create_task(self._prober.run(), name="prober"),
            asyncio.create_task(self._drains.run(), name="drain reports"),
            asyncio.create_task(self._leases.run(), name="leases"),
            asyncio.create_task(self._beliefs.run(), name="beliefs"),
            asyncio.create_task(self._tokens.run(), name="federated tokens"),
        ]

    async def adopt(self, state: State) -> None:
        """Serve a sealed state until the database answers; its data keys are in the sealer's memory by now."""
        self._directory.adopt(await self._loader.assemble_all(state.rows))
        taken = when(state.taken_at)
        self._health.note(
            "sealed state",
            lambda: f"Serving the state of {taken}: Postgres is away." if self._directory.is_adopted else None,
        )
        log.warning("serving from the sealed state", extra={"taken_at": taken, "tenants": len(state.rows.tenants)})

    async def close(self) -> None:
        """Stop refreshing, write the last usage rows and what others should know, close the provider connections."""
        await stop(self._tasks, _LEAVE_S)
        # Side by side: while the database says nothing each of them waits until its own time is up.
        goodbyes = {
            "leases": self._leases.close(),
            "beliefs": self._beliefs.close(),
            "drain reports": self._drains.leave(),
            "explanations": self._explanations.close(),
            "usage": self._usage.close(),
            "budgets": self._budgets.close(),
        }
        tasks = [asyncio.create_task(goodbye, name=name) for name, goodbye in goodbyes.items()]
        await finish(tasks, _GOODBYES_S)
        await self._usage_store.close()
        await self._pool.close()
        await self._tokens.close()
        await self._directory.close()

    def _publish(self, metrics: Metrics) -> None:
        app, usage, pool, loader = self.app, self._usage, self._pool, self._loader
        census = Census(lambda: self._directory)
        metrics.before_scrape(census.take)
        gauge, counter = metrics.watch_gauge, metrics.watch_counter
        gauge("llm_proxy_in_flight", "Inference requests in progress.", lambda: app.in_flight)
        gauge("llm_proxy_queued", "Inference requests that wait for capacity.", lambda: census.sums.waiting)
        oldest = "How long the request waits that waits longest."
        gauge("llm_proxy_queue_oldest_seconds", oldest, lambda: census.sums.oldest_s)
        served = "Requests that waited for capacity and were served; their waits are llm_proxy_queue_wait_seconds."
        counter("llm_proxy_queue_served", served, lambda: census.sums.queues.served)
        counter("llm_proxy_queue_wait_seconds", "Their waits, in all.", lambda: census.sums.queues.waited_s)
        away = "Requests that waited for capacity, or would have, and were not served, by reason."
        metrics.watch_labelled("llm_proxy_queue_turned_away", away, "reason", lambda: census.sums.turned_away)
        gauge("llm_proxy_tenants", "Tenants in memory.", lambda: census.sums.tenants)
        served = "1 while what is served comes from the sealed state, Postgres being away since the start."
        gauge("llm_proxy_serving_from_state", served, lambda: float(self._directory.is_adopted))
        gauge("llm_proxy_usage_buffered", "Usage rows that wait to be written.", lambda: usage.buffered)
        counter("llm_proxy_usage_written", "Usage rows written.", lambda: usage.written)
        if (spool := self._spool) is not None:
            gauge("llm_proxy_usage_spool_bytes", "Disk that the usage spool takes.", lambda: spool.bytes_held)
            counter("llm_proxy_usage_unspooled", "Usage rows without room on disk.", lambda: spool.unspooled)
            counter("llm_proxy_usage_recovered", "Usage rows read from disk again.", lambda: spool.recovered)
        counter("llm_proxy_usage_dropped", "Usage rows dropped, the buffer being full.", lambda: usage.dropped)
        refused = "Usage rows that the database will not take: they are lost."
        counter("llm_proxy_usage_refused", refused, lambda: usage.refused)
        budgets = self._budgets
        rates = self._rates
        gauge("llm_proxy_rate_exchange_failures", "Rate exchanges failed in a row.", lambda: rates.failures)
        gauge("llm_proxy_budget_exchange_failures", "Budget exchanges failed in a row.", lambda: budgets.failures)
        counter("llm_proxy_keys_unopened", "Provider keys that did not open.", lambda: loader.unopened_total)
        gauge("llm_proxy_keys_left_out", "Provider keys that do not open now.", lambda: loader.unopened_now)
        gauge("llm_proxy_upstream_connections", "Provider connections.", lambda: pool.view().open)
        tokens = self._tokens
        gauge("llm_proxy_federated_tokens", "Short-lived provider tokens that keys need.", lambda: tokens.wanted)
        missing = "Short-lived provider tokens that keys need and do not have: those keys are out of service."
        gauge("llm_proxy_federated_tokens_missing", missing, lambda: tokens.missing)
        counter("llm_proxy_token_exchanges", "Token exchanges with providers.", lambda: tokens.exchanges)
        counter("llm_proxy_token_exchanges_failed", "Token exchanges that failed.", lambda: tokens.failures)
        prober = self._prober
        counter("llm_proxy_probes", "Probes of keys that are out of service.", lambda: prober.probes)
        counter("llm_proxy_health_checks", "Checks of keys in service.", lambda: prober.checks)
        counter("llm_proxy_keys_revived", "Keys that a probe brought back into service.", lambda: prober.revived)
        leases = self._leases
        gauge("llm_proxy_leases", "Quotas of which this process holds a share.", lambda: len(leases.desk))
        counter("llm_proxy_lease_exchanges", "Exchanges of shares with Postgres.", lambda: leases.exchanges)
        counter("llm_proxy_lease_failures", "Exchanges that failed, Postgres being away.", lambda: leases.failures)
        unannounced = "News of quotas that could not be announced; the others read them a second later."
        counter("llm_proxy_lease_news_unannounced", unannounced, lambda: leases.unannounced)
        explained = self._explanations
        counter("llm_proxy_explanations_stored", "Explanations of requests stored.", lambda: explained.stored)
        dropped = "Explanations that were not stored, there being too many."
        counter("llm_proxy_explanations_dropped", dropped, lambda: explained.dropped)
        wrong = "Limits that are configured above what the provider says it grants."
        gauge("llm_proxy_limits_misconfigured", wrong, lambda: census.sums.misconfigured)
        beliefs = self._beliefs
        counter("llm_proxy_beliefs_saved", "What was learned of limiters: rows written.", lambda: beliefs.saved)
        hedges = "Second attempts for answers that were late, by what came of them."
        metrics.watch_labelled("llm_proxy_hedges", hedges, "result", lambda: census.sums.hedges)
        given_up = "Tokens that attempts given up for an earlier answer are estimated to have cost."
        tokens_of = "llm_proxy_hedge_estimated_tokens"
        metrics.watch_labelled(tokens_of, given_up, "direction", lambda: census.sums.hedge_tokens)
        spent = "US dollars that attempts given up for an earlier answer are estimated to have cost."
        counter("llm_proxy_hedge_estimated_cost_usd", spent, lambda: census.sums.hedge_cost_nanos / 1e9)
        sized = "Answers whose max_tokens were lowered, by whether they ended at the limit."
        metrics.watch_labelled("llm_proxy_right_sized", sized, "result", lambda: census.sums.sized)
        opened = "Provider connections opened."
        counter("llm_proxy_upstream_connections_opened", opened, lambda: pool.view().opened_total)

    def _granted(self, tenants: set[UUID]) -> None:
        for tenant_id in tenants:
            if (tenant := self._directory.get(tenant_id)) is not None:
                tenant.book.wake()
