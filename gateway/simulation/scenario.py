"""The pool that a trace is replayed against: true limits, what the balancer was told, and what goes wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Literal

import msgspec

from gateway.balancing.quota import Limits
from gateway.simulation.demand import Demand
from gateway.simulation.limits.model import Cost
from gateway.simulation.limits.registry import LIMIT_MODELS, make_limit_model

PoolKind = Literal["mixed", "headers", "anthropic", "headerless", "unknown"]
POOL_KINDS: tuple[PoolKind, ...] = ("mixed", "headers", "anthropic", "headerless", "unknown")
_STYLES: dict[PoolKind, tuple[str, ...]] = {
    "mixed": ("openai", "openai", "azure", "azure", "anthropic", "gemini", "bedrock", "opaque"),
    "headers": ("openai", "openai", "openai", "openai", "azure", "azure", "groq", "groq"),
    "anthropic": ("anthropic",) * 8,
    "headerless": ("gemini", "gemini", "bedrock", "bedrock", "opaque", "opaque", "opaque", "opaque"),
    "unknown": ("openai", "azure", "anthropic", "gemini", "paced", "paced", "paced", "paced"),
}
_MEAN_RPM, _SPREAD = 600, 0.7
_TOKENS_PER_REQUEST = 2_500
_DAY_REQUESTS = 1_440


class SimulatedKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One key. `limits` are true, `configured` is what the balancer is told (None: the truth; empty: nothing).

    Keys that name the same `quota` share its limits. `tier` 0 is premium. `drift` are (seconds, factor) from the start;
    `outside_share` of the limits is used by others, on and off in turns of `outside_period_s`. Prices per million
    tokens.
    """

    name: str
    style: str = "openai"
    limits: Limits = Limits()
    configured: Limits | None = None
    quota: str = ""
    weight: int = 1
    tier: int = 0
    region: str | None = None
    first_byte_s: float = 0.4
    token_s: float = 0.01
    input_price: float = 2.5
    output_price: float = 10.0
    drift: tuple[tuple[float, float], ...] = ()
    outside_share: float = 0.0
    outside_period_s: float = 60.0

    def __post_init__(self) -> None:
        if self.style not in LIMIT_MODELS:
            raise ValueError(f"unknown `style` {self.style!r}: use one of {', '.join(LIMIT_MODELS)}")
        if not self.name:
            raise ValueError("a key needs a `name`")
        if self.weight < 0 or self.first_byte_s < 0 or self.token_s < 0:
            raise ValueError("`weight`, `first_byte_s` and `token_s` are 0 or more")
        if not 0 <= self.outside_share < 1:
            raise ValueError("`outside_share` is a share from 0 to below 1")

    @property
    def quota_id(self) -> str:
        """Return the quota that the key draws on."""
        return self.quota or self.name


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A pool to replay against; `rejected_s` is what a refused attempt costs, `max_attempts` counts the first too."""

    keys: tuple[SimulatedKey, ...]
    rejected_s: float = 0.15
    max_attempts: int = 6

    def __post_init__(self) -> None:
        names = [key.name for key in self.keys]
        if not names:
            raise ValueError("a pool needs at least one key")
        if len(set(names)) < len(names):
            raise ValueError("two keys have the same `name`")
        for quota in {key.quota_id for key in self.keys}:
            if len({key.style for key in self.keys if key.quota_id == quota}) > 1:
                raise ValueError(f"the keys of the quota {quota!r} have different styles")


def load_scenario(data: bytes) -> Scenario:
    """Read a pool from JSON; raises ValueError that names the offending field."""
    try:
        return msgspec.json.decode(data, type=Scenario)
    except msgspec.MsgspecError as error:
        raise ValueError(f"the pool file is not usable: {error}") from error


def evaluation_pool(kind: PoolKind, rng: Random, *, messy: bool = False, duration_s: float = 900.0) -> Scenario:
    """Make eight unequal keys (log-normal sizes).

    `messy`: 40 % are configured wrong by a factor of 0.5 to 2, 30 % drift by 0.5 to 1.8 in mid-run, 40 % have on/off
    load from outside.
    """
    keys: list[SimulatedKey] = []
    for index, style in enumerate(_STYLES[kind]):
        rpm = max(10, round(_MEAN_RPM * rng.lognormvariate(-(_SPREAD**2) / 2, _SPREAD)))
        limits = _limits(style, rpm)
        wrong = math.exp(rng.uniform(math.log(0.5), math.log(2.0))) if messy and rng.random() < 0.4 else 1.0
        drifts = messy and rng.random() < 0.3
        moment, factor = rng.uniform(0.3, 0.7) * duration_s, math.exp(rng.uniform(math.log(0.5), math.log(1.8)))
        outside = rng.uniform(0.1, 0.4) if messy and rng.random() < 0.4 else 0.0
        keys.append(
            SimulatedKey(
                name=f"{style}-{index}",
                style=style,
                limits=limits,
                configured=scaled(limits, wrong),
                weight=max(1, round(rpm / 10)),
                first_byte_s=round(rng.uniform(0.25, 0.8), 3),
                token_s=round(rng.uniform(0.006, 0.02), 4),
                input_price=round(2.5 * rng.uniform(0.6, 1.4), 2),
                output_price=round(10.0 * rng.uniform(0.6, 1.4), 2),
                drift=((moment, factor),) if drifts else (),
                outside_share=outside,
                outside_period_s=rng.uniform(30.0, 120.0),
            )
        )
    return Scenario(keys=tuple(keys))


def _limits(style: str, rpm: int) -> Limits:
    tokens = rpm * _TOKENS_PER_REQUEST
    match style:
        case "anthropic":
            return Limits(rpm=rpm, itpm=int(tokens * 0.8), otpm=int(tokens * 0.6))
        case "gemini":
            return Limits(rpm=rpm, itpm=tokens, rpd=rpm * _DAY_REQUESTS)
        case "groq":
            return Limits(rpm=rpm, tpm=tokens, rpd=rpm * _DAY_REQUESTS)
        case "bedrock":
            # It reserves 64,000 for an unset `max_tokens`: its limits are larger for the same traffic.
            return Limits(rpm=rpm, tpm=tokens * 4)
        case _:
            return Limits(rpm=rpm, tpm=tokens)


def scaled(limits: Limits, factor: float) -> Limits:
    """Multiply every limit but concurrency; nothing falls below 1."""

    def times(value: int | None) -> int | None:
        return None if value is None else max(1, round(value * factor))

    return Limits(
        rpm=times(limits.rpm),
        tpm=times(limits.tpm),
        itpm=times(limits.itpm),
        otpm=times(limits.otpm),
        rpd=times(limits.rpd),
        tpd=times(limits.tpd),
        concurrency=limits.concurrency,
    )


def scale_to_load(scenario: Scenario, demands: Sequence[Demand], load: float) -> Scenario:
    """Scale all limits (not time) so that the demand is `load` times what the pool can take on average.

    No key is left too small for the largest single request of the trace: that would not be load but impossibility.
    """
    duration_s = max(1.0, demands[-1].at - demands[0].at)
    offered_rps = len(demands) / duration_s
    factor = offered_rps / (load * capacity_rps(scenario, demands))
    return Scenario(
        keys=tuple(
            msgspec.structs.replace(
                key,
                limits=scaled(key.limits, factor),
                configured=None if key.configured is None else scaled(key.configured, factor),
            )
            for key in scenario.keys
        ),
        rejected_s=scenario.rejected_s,
        max_attempts=scenario.max_attempts,
    )


def capacity_rps(scenario: Scenario, demands: Sequence[Demand]) -> float:
    """Return the mean requests a second that all quotas together admit of this demand."""
    sample = demands[:: max(1, len(demands) // 2_000)]
    total = 0.0
    for key in {key.quota_id: key for key in scenario.keys}.values():
        model = make_limit_model(key.style, key.limits, organisation=key.quota_id)
        mean: dict[str, float] = {}
        for demand in sample:
            cost = cost_of(demand)
            final = _final_charge(key.style, model.charges(cost), demand)
            for dimension, amount in final.items():
                mean[dimension] = mean.get(dimension, 0.0) + amount / len(sample)
        rates = [
            meter.capacity / meter.period_s / mean[dimension]
            for dimension, meter in model.meters().items()
            if mean[dimension] > 0
        ]
        total += min(rates, default=math.inf) * (1 - key.outside_share / 2)
    return total


def _final_charge(style: str, charges: dict[str, float], demand: Demand) -> dict[str, float]:
    """Return what a request costs in the end, where its provider settles."""
    used = {
        "anthropic": {"output-tokens": demand.output_tokens},
        "mistral": {"tokens": demand.input_tokens + demand.output_tokens},
        "groq": {"tokens": demand.input_tokens - demand.cached_tokens + demand.output_tokens},
        "bedrock": {"tokens": demand.input_tokens + demand.output_tokens},
        "paced": {"tokens": demand.input_tokens + demand.output_tokens},
        "opaque": {"tokens": demand.input_tokens + demand.output_tokens},
    }.get(style, {})
    return {**charges, **used}


def cost_of(demand: Demand, *, warm: bool = True) -> Cost:
    """Return what a provider counts at admission; its estimate of the prompt is the true count.

    Not `warm`: the prompt's beginning is not in its cache.
    """
    return Cost(demand.model, demand.input_tokens, demand.max_tokens, demand.cached_tokens if warm else 0)
