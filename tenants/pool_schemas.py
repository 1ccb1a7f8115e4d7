"""What pools and quotas may be set to: limits, retries, deadlines, options of a strategy. Shared by every way in.

The management API, imported pool files and declarations all take these shapes; a missing member means the default.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

PositiveInt = Annotated[int, Meta(gt=0, le=10**12)]
InFlight = Annotated[int, Meta(gt=0, le=2**31 - 1, description="Requests under way at once, at most")]
Weight = Annotated[
    int, Meta(ge=0, le=10000, description="Share of the traffic, relative to the pool's other keys; 0 = standby")
]
Tier = Annotated[int, Meta(ge=0, le=9, description="0 is premium, larger is lower")]
Seconds = Annotated[float, Meta(gt=0, le=3600)]


ModelPattern = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^\S+$", description="A model, or a glob")]


class ModelLimits(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A provider's limits; a member that is missing is not limited, or not known."""

    rpm: PositiveInt | None = None
    tpm: PositiveInt | None = None
    itpm: PositiveInt | None = None
    otpm: PositiveInt | None = None
    rpd: PositiveInt | None = None
    tpd: PositiveInt | None = None
    concurrency: PositiveInt | None = None


class Limits(ModelLimits, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of all models, and in `models` of those that have others, by name or by a pattern of several.

    The models of one entry share it; what it leaves out holds as said for all. `concurrency` outside `models` counts
    all models together.
    """

    models: Annotated[dict[ModelPattern, ModelLimits], Meta(max_length=32)] | UnsetType = UNSET


class RetrySettings(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How often a request may be tried; `budget_ratio` caps retries as a share of all requests.

    `max_pause_s` bounds how long a request waits for capacity when every key is full; 0: not at all.
    """

    max_attempts: Annotated[int, Meta(ge=1, le=10)] | UnsetType = UNSET
    budget_ratio: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    max_pause_s: Annotated[float, Meta(ge=0, le=600)] | UnsetType = UNSET


class Deadlines(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Seconds to wait for the provider: to connect, for its first byte, between two bytes, and in all."""

    connect_s: Seconds | UnsetType = UNSET
    first_byte_s: Seconds | UnsetType = UNSET
    idle_s: Seconds | UnsetType = UNSET
    total_s: Seconds | UnsetType = UNSET


class StrategyOptions(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What strategies may be told; each takes what concerns it.

    `weight_by`: what `weighted` follows. `threshold`: the free share of a limit below which `rate_limit_aware` turns
    elsewhere. `overflow_daily`: it spends daily limits only when the others are full. `home_region`: where callers are
    that do not say so, for `geographic`. `cache_affinity`: keep conversations where their prompt cache is warm.
    `limits_are_caps`: `predictive` never goes above a configured limit, even where the provider grants more.
    """

    weight_by: Literal["fixed", "limit", "remaining", "price"] | UnsetType = UNSET
    threshold: Annotated[float, Meta(ge=0, lt=1)] | UnsetType = UNSET
    overflow_daily: bool | UnsetType = UNSET
    home_region: str | UnsetType = UNSET
    cache_affinity: bool | UnsetType = UNSET
    limits_are_caps: bool | UnsetType = UNSET


class Fallback(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where a request goes that the pool cannot serve: to another pool, with another model, or both.

    `models` says which model stands in for which; with it and without `model` nothing else falls back here. `on` names
    the causes: capacity and outage if it is missing. `after_s`: how long to wait for capacity before.
    """

    pool: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    models: dict[str, str] | UnsetType = UNSET
    on: (
        Annotated[list[Literal["capacity", "outage", "context_length", "content_policy"]], Meta(min_length=1)]
        | UnsetType
    ) = UNSET
    after_s: Annotated[float, Meta(ge=0, le=600)] | UnsetType = UNSET


class Hedging(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Ask a second key when the first byte is later than for 95 % of a model's answers; off unless it is set.

    `share`: of all requests, at most. `headroom`: what the second key must have free of its limits. `least_s`: never
    sooner than this.
    """

    share: Annotated[float, Meta(gt=0, le=0.5)] | UnsetType = UNSET
    headroom: Annotated[float, Meta(ge=0, lt=1)] | UnsetType = UNSET
    least_s: Annotated[float, Meta(ge=0, le=600)] | UnsetType = UNSET


class LateLane(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """When a waiting request is late: from then on it steps behind the punctual ones of its priority."""

    after_s: Annotated[float, Meta(gt=0, le=600)] | UnsetType = UNSET
    by_priority: (
        dict[Literal["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"], Annotated[float, Meta(gt=0, le=600)]]
        | UnsetType
    ) = UNSET


class PoolSettings(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a pool does beside choosing a key; a missing member means the installation's default."""

    failover: bool | UnsetType = UNSET
    retry: RetrySettings | UnsetType = UNSET
    deadlines: Deadlines | UnsetType = UNSET
    model_aliases: dict[str, str] | UnsetType = UNSET
    max_waiting: Annotated[int, Meta(ge=0, le=100_000, description="Requests that wait at once")] | UnsetType = UNSET
    strategy_options: StrategyOptions | UnsetType = UNSET
    fallbacks: Annotated[list[Fallback], Meta(max_length=8)] | UnsetType = UNSET
    hedging: Hedging | UnsetType = UNSET
    late_lane: LateLane | UnsetType = UNSET
    premium_reserve: (
        Annotated[
            float, Meta(ge=0, lt=1, description="Share of the premium tier's headroom kept for critical requests")
        ]
        | UnsetType
    ) = UNSET
    health_check_s: (
        Annotated[float, Meta(ge=1, le=3600, description="Check every key so often, the idle ones too")] | UnsetType
    ) = UNSET
    explain_share: (
        Annotated[float, Meta(ge=0, le=1, description="Share of the requests whose explanation is stored")] | UnsetType
    ) = UNSET
    right_size: (
        Annotated[bool, Meta(description="Lower max_tokens that are unset or far too large, where they are reserved")]
        | UnsetType
    ) = UNSET
