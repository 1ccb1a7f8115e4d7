"""What a pool's settings mean to the data path; `tenants.pool_schemas` says what may be written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.balancing.fallback import Cause, Rung
from gateway.balancing.hedging import HedgePolicy
from gateway.balancing.quota import Limits, Quota
from gateway.balancing.slate import PREMIUM_RESERVE
from gateway.balancing.strategies.registry import StrategyOptions, make_strategy
from gateway.balancing.strategies.weighted import WeightBy
from gateway.balancing.strategy import Strategy
from tenants.snapshot import PoolSnapshot, QuotaSnapshot, TenantSnapshot

logger = logging.getLogger(__name__)


class RetrySettings(msgspec.Struct, frozen=True):
    """See `RetryPolicy` and `RetryBudget`."""

    max_attempts: int = 4
    budget_ratio: float = 0.2
    max_pause_s: float = 30.0


class DeadlineSettings(msgspec.Struct, frozen=True):
    """See `Deadlines`."""

    connect_s: float = 5.0
    first_byte_s: float = 300.0
    idle_s: float = 120.0
    total_s: float = 900.0


class StrategySettings(msgspec.Struct, frozen=True):
    """See `StrategyOptions`."""

    weight_by: WeightBy = "fixed"
    threshold: float = 0.05
    overflow_daily: bool = False
    home_region: str | None = None
    cache_affinity: bool = False
    limits_are_caps: bool = False


class FallbackSettings(msgspec.Struct, frozen=True):
    """See `Rung`; `on` are its causes."""

    pool: str | None = None
    model: str | None = None
    models: dict[str, str] = {}
    on: frozenset[Cause] = frozenset({Cause.CAPACITY, Cause.OUTAGE})
    after_s: float = 0.0


class HedgingSettings(msgspec.Struct, frozen=True):
    """See `HedgePolicy`."""

    share: float = 0.05
    headroom: float = 0.2
    least_s: float = 0.05


class LateLaneSettings(msgspec.Struct, frozen=True):
    """After how many seconds of waiting an answer is late; `by_priority` where priorities differ."""

    after_s: float | None = None
    by_priority: dict[int, float] = {}


class PoolSettings(msgspec.Struct, frozen=True):
    """What a pool's settings say; members left out have these defaults."""

    failover: bool = True
    retry: RetrySettings = RetrySettings()
    deadlines: DeadlineSettings = DeadlineSettings()
    model_aliases: dict[str, str] = {}
    max_waiting: int = 1000
    strategy_options: StrategySettings = StrategySettings()
    fallbacks: tuple[FallbackSettings, ...] = ()
    hedging: HedgingSettings | None = None
    late_lane: LateLaneSettings | None = None
    right_size: bool = False
    explain_share: float = 0.0
    premium_reserve: float = PREMIUM_RESERVE
    health_check_s: float | None = None

    def late_after_s(self, priority: int) -> float | None:
        """Give after how long a wait a request is late, for the late lane; None: never."""
        lane = self.late_lane
        return None if lane is None else lane.by_priority.get(priority, lane.after_s)

    @property
    def hedge_policy(self) -> HedgePolicy | None:
        """How the pool hedges; None: not."""
        asked = self.hedging
        return None if asked is None else HedgePolicy(asked.share, asked.headroom, asked.least_s)

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The fallback ladder, in order."""
        return tuple(Rung(each.pool, each.model, each.on, each.models, each.after_s) for each in self.fallbacks)


def read_settings(pool: PoolSnapshot, tenant: str) -> PoolSettings:
    """Read them; `tenant` names it in the log."""
    try:
        return msgspec.convert(pool.settings, PoolSettings, str_keys=True)  # JSON has no others
    except msgspec.ValidationError as error:
        # Written past the API, or by a later version: the pool serves on with what is known to be safe.
        logger.error("pool settings ignored: %s", error, extra={"tenant": tenant, "pool": pool.name})
        return PoolSettings()


def strategy_of(
    pool: PoolSnapshot, settings: PoolSettings, tenant: str, home_region: str | None = None, *, predicts: bool = True
) -> Strategy:
    """Make the pool's strategy; `tenant` names it in the log, `home_region` holds where the pool does not say."""
    asked = settings.strategy_options
    options = StrategyOptions(
        weight_by=asked.weight_by,
        threshold=asked.threshold,
        overflow_daily=asked.overflow_daily,
        home_region=asked.home_region or home_region,
        cache_affinity=asked.cache_affinity,
        limits_are_caps=asked.limits_are_caps,
        predicts=predicts,
    )
    try:
        return make_strategy(pool.strategy, options)
    except ValueError as error:
        logger.error("strategy replaced by weighted: %s", error, extra={"tenant": tenant, "pool": pool.name})
        return make_strategy("weighted", options)


def read_residency(tenant: TenantSnapshot) -> tuple[str, ...]:
    """Read the patterns of the only regions in which the tenant may be served; empty: any."""
    found = tenant.settings.get("residency", ())
    if isinstance(found, list | tuple) and all(isinstance(each, str) and each for each in found):
        return tuple(found)
    # A hard rule that cannot be read admits nothing, rather than everything.
    logger.error("the tenant's setting `residency` is no list of regions", extra={"tenant": tenant.slug})
    return ("-",)


def read_quota(stored: QuotaSnapshot) -> Quota:
    """Read a quota with its families; members of limits that are not known here are left out."""
    families = stored.limits.get("models", {})
    of_families = {name: _limits(each) for name, each in families.items()}
    return Quota(str(stored.id), _limits(stored.limits), stored.provider, of_families)


def _limits(stored: Mapping[str, Any]) -> Limits:
    return Limits(**{name: value for name, value in stored.items() if name in Limits.__dataclass_fields__})
