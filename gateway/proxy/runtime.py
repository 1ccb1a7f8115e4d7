"""A tenant in memory, ready to serve: its pools, each with a balancer, and for each key where and how to send.

Built from a `TenantSnapshot` by `build_tenant`, which is pure (but for what `key_target` logs); rebuilding keeps the
state of balancers, queues and retry budgets of pools that still exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from auth.globs import matches
from auth.secret import Secret
from gateway.balancing.balancer import Balancer
from gateway.balancing.book import Beliefs, QuotaBook, QuotaLeasing
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.fallback import Rung
from gateway.balancing.hedging import Hedging, hedging_by
from gateway.balancing.retry import RetryBudget, RetryPolicy
from gateway.balancing.strategies.cache_affinity import CacheAffinity
from gateway.balancing.strategies.registry import DEFAULT, TENANTS_DEFAULT
from gateway.balancing.strategy import Strategy
from gateway.metering.pricing import PriceTable
from gateway.proxy.key_target import KeyTarget, build_target
from gateway.proxy.pool_settings import PoolSettings, read_quota, read_residency, read_settings, strategy_of
from gateway.proxy.queue import PoolQueue
from gateway.proxy.sizing import Sizing
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.message import Deadlines
from gateway.upstream.providers import Target
from tenants.snapshot import DrainingVersion, PoolSnapshot, TenantSnapshot

if TYPE_CHECKING:
    from gateway.proxy.choice import Choice

_SERVES_CACHE_BOUND = 2048


@dataclass(slots=True)
class PoolRuntime:
    """One pool. `endpoints` are keys of `targets` by the id that the balancer knows them by.

    The object lives as long as the pool: a rebuild changes it in place, so that a request which was under way sees the
    keys that the balancer hands out.
    """

    pool_id: UUID
    name: str
    is_default: bool
    strategy_name: str
    strategy: Strategy
    settings: PoolSettings
    endpoints: tuple[Endpoint, ...]
    targets: Mapping[str, KeyTarget]
    balancer: Balancer
    budget: RetryBudget
    policy: RetryPolicy
    deadlines: Deadlines
    queue: PoolQueue
    regions: frozenset[str]
    rungs: tuple[Rung, ...] = ()
    """Where requests fall back to."""
    hedging: Hedging | None = None
    sizing: Sizing | None = None
    known_serves: dict[tuple[str, str], bool] = field(default_factory=dict)

    def real_model(self, model: str) -> str:
        """Return the model that `model` is an alias of, or itself."""
        return self.settings.model_aliases.get(model, model)

    @property
    def has_affinity(self) -> bool:
        """Tell whether the strategy looks at what a request's prompt begins with."""
        return isinstance(self.strategy, CacheAffinity)

    def retire(self) -> None:
        """End it: the pool was deleted, so nothing more is sent with its keys, and nobody waits for them."""
        self.endpoints, self.targets, self.rungs = (), {}, ()
        self.known_serves.clear()
        self.balancer.reconfigure((), (), self.strategy)
        self.balancer.close()

    def serves(self, model: str, dialect: str) -> bool:
        """Tell whether some key serves `model` (an alias or a real name) in `dialect`."""
        found = self.known_serves.get((model, dialect))
        if found is None:
            real = self.real_model(model)
            found = any(endpoint.serves(real, dialect) for endpoint in self.endpoints)
            if len(self.known_serves) < _SERVES_CACHE_BOUND:
                self.known_serves[model, dialect] = found
        return found


@dataclass(frozen=True, slots=True)
class TenantRuntime:
    """One tenant at `revision`; `pools` by name, in the order of names. `default` is the pool for unnamed requests.

    `book` holds what is known of the quotas that the pools share.
    """

    tenant_id: UUID
    slug: str
    is_active: bool
    revision: int
    pools: Mapping[str, PoolRuntime]
    default: PoolRuntime | None
    book: QuotaBook
    draining: Mapping[str, DrainingVersion] = field(default_factory=dict)
    """Versions that serve only what began with them, by endpoint id."""
    residency: tuple[str, ...] = ()
    """Patterns of the only regions in which the tenant may be served, empty = any."""
    choices: dict[tuple[str | None, str, str], Choice] = field(default_factory=dict)
    """What `choose_pool` found for requests that nothing narrows; bounded."""

    def admits(self, region: str) -> bool:
        """Tell whether keys in `region` may serve this tenant."""
        return not self.residency or any(matches(pattern, region) for pattern in self.residency)

    @property
    def targets(self) -> int:
        """How many keys can be used."""
        return sum(len(pool.targets) for pool in self.pools.values())


class Tokens(Protocol):
    """The short-lived tokens of keys that have no secret; fulfilled by `gateway.proxy.federation.TokenKeeper`."""

    def want(self, snapshot: TenantSnapshot) -> bool:
        """Take in which tokens a tenant's keys need; tells whether they need any."""

    def forget(self, tenant_id: UUID) -> None:
        """Drop what a tenant that is gone needed."""

    def secret(self, source_id: UUID) -> Secret | None:
        """Return the token of a source, None while there is none."""

    async def settled(self, tenant_id: UUID | None = None) -> None:
        """Return when each token (of one tenant) was tried for."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What building needs from outside; `clock` is the balancers' monotonic clock (Unix time = clock + offset).

    `home_region`: where this process runs, for strategies that go by nearness. Not `predicts`: `predictive` learns
    nothing. `recall` gives what was known of a tenant's limiters before this process began.
    """

    egress: EgressPolicy
    clock: Callable[[], float]
    rng: Random
    unix_offset_s: float = 0.0
    prices: PriceTable | None = None
    home_region: str | None = None
    leasing: Callable[[UUID], QuotaLeasing | None] = lambda _: None
    tokens: Tokens | None = None
    predicts: bool = True
    recall: Callable[[UUID], Beliefs] = lambda _: {}
    resolved: dict[tuple[str, str, str | None, str | None], Target | None] = field(default_factory=dict)
    """Many keys share an address: each is worked out once. Emptied when it grows."""
    troubled: set[UUID] = field(default_factory=set)
    """Tenants some of whose keys may be out of service."""

    def priced(self, endpoint: Endpoint, model: str) -> Endpoint:
        """Return `endpoint` with its prices for `model`, if they are known."""
        found = self.prices.per_million(endpoint.provider, model) if self.prices is not None else None
        return endpoint if found is None else replace(endpoint, input_price=found[0], output_price=found[1])


def endpoint_id_of(key_id: UUID, version: int) -> str:
    """Return the name that balancers know one version of a key by."""
    return f"{key_id}/{version}"


def build_tenant(snapshot: TenantSnapshot, previous: TenantRuntime | None, workshop: Workshop) -> TenantRuntime:
    """Make the runtime of `snapshot`, taking over the state of pools that `previous` has as well."""
    known = {pool.pool_id: pool for pool in previous.pools.values()} if previous else {}
    if previous is not None:
        book = previous.book
    else:
        book = QuotaBook(workshop.leasing(snapshot.tenant_id))
        book.recall(workshop.recall(snapshot.tenant_id))
    for pool_id in known.keys() - {pool.pool_id for pool in snapshot.pools}:
        known[pool_id].retire()
    pools = {
        pool.name: _build_pool(snapshot, pool, known.get(pool.pool_id), book, workshop)
        for pool in sorted(snapshot.pools, key=lambda pool: pool.name)
    }
    default = next((pool for pool in pools.values() if pool.is_default), None)
    return TenantRuntime(
        tenant_id=snapshot.tenant_id,
        slug=snapshot.slug,
        is_active=snapshot.status == "active",
        revision=snapshot.revision,
        pools=pools,
        default=default,
        book=book,
        draining={endpoint_id_of(each.key_id, each.number): each for each in snapshot.draining},
        residency=read_residency(snapshot),
    )


def _build_pool(
    tenant: TenantSnapshot, pool: PoolSnapshot, before: PoolRuntime | None, book: QuotaBook, workshop: Workshop
) -> PoolRuntime:
    settings = read_settings(pool, tenant.slug)
    if pool.strategy == TENANTS_DEFAULT:
        wanted = tenant.settings.get("default_strategy")
        pool = replace(pool, strategy=wanted if isinstance(wanted, str) else DEFAULT)
    targets: dict[str, KeyTarget] = {}
    endpoints = []
    for key in pool.keys:
        target = build_target(tenant, pool, key, workshop)
        if target is None:
            continue
        # A new version of a key is a new endpoint: what was learned about the old secret does not hold for it.
        endpoint_id = endpoint_id_of(key.key_id, key.version)
        targets[endpoint_id] = target
        endpoints.append(
            Endpoint(
                id=endpoint_id,
                quota_id=str(key.quota_id),
                provider=key.provider,
                dialects=frozenset(target.faces),
                region=key.region,
                tier=key.tier,
                weight=key.weight,
                models=key.models,
                max_in_flight=key.max_in_flight,
                address=key.base_url,
            )
        )
    quotas = [read_quota(quota) for quota in pool.quotas]
    policy = RetryPolicy(
        max_attempts=settings.retry.max_attempts, failover=settings.failover, max_pause_s=settings.retry.max_pause_s
    )
    asked = settings.deadlines
    deadlines = Deadlines(
        connect_s=asked.connect_s, first_byte_s=asked.first_byte_s, idle_s=asked.idle_s, total_s=asked.total_s
    )
    regions = frozenset(endpoint.region for endpoint in endpoints if endpoint.region)
    sizing = before.sizing if before is not None else None
    if settings.right_size:
        sizing = sizing or Sizing(workshop.clock)
        sizing.configure({endpoint.provider for endpoint in endpoints})
    if before is None:
        queue = PoolQueue(workshop.clock, max_waiting=settings.max_waiting, late_lane=settings.late_lane is not None)
        strategy = strategy_of(pool, settings, tenant.slug, workshop.home_region, predicts=workshop.predicts)
        return PoolRuntime(
            pool_id=pool.pool_id,
            name=pool.name,
            is_default=pool.is_default,
            strategy_name=pool.strategy,
            strategy=strategy,
            settings=settings,
            endpoints=tuple(endpoints),
            targets=targets,
            balancer=Balancer(
                endpoints,
                quotas,
                strategy,
                rng=workshop.rng,
                now=workshop.clock(),
                unix_offset_s=workshop.unix_offset_s,
                on_freed=queue.released,
                on_trip=partial(workshop.troubled.add, tenant.tenant_id),
                book=book,
                priced=workshop.priced,
                premium_reserve=settings.premium_reserve,
            ),
            budget=RetryBudget(settings.retry.budget_ratio),
            policy=policy,
            deadlines=deadlines,
            queue=queue,
            regions=regions,
            rungs=settings.rungs,
            hedging=hedging_by(settings.hedge_policy, None),
            sizing=sizing if settings.right_size else None,
        )
    if (before.strategy_name, before.settings.strategy_options) != (pool.strategy, settings.strategy_options):
        # An unchanged one keeps its object and with it its turns.
        before.strategy_name = pool.strategy
        before.strategy = strategy_of(pool, settings, tenant.slug, workshop.home_region, predicts=workshop.predicts)
    if before.settings.retry != settings.retry:
        before.budget = RetryBudget(settings.retry.budget_ratio)
    before.name, before.is_default = pool.name, pool.is_default
    before.settings, before.policy, before.deadlines = settings, policy, deadlines
    before.endpoints, before.targets, before.regions = tuple(endpoints), targets, regions
    before.rungs = settings.rungs
    before.sizing = sizing if settings.right_size else None
    before.hedging = hedging_by(settings.hedge_policy, before.hedging)
    before.queue.configure(max_waiting=settings.max_waiting, late_lane=settings.late_lane is not None)
    before.known_serves.clear()
    before.balancer.reconfigure(endpoints, quotas, before.strategy, premium_reserve=settings.premium_reserve)
    return before
