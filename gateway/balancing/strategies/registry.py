"""Strategies by name; adding one is adding a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.balancing.strategies.adaptive import Adaptive
from gateway.balancing.strategies.cache_affinity import CacheAffinity
from gateway.balancing.strategies.geographic import Geographic
from gateway.balancing.strategies.least_connections import LeastConnections
from gateway.balancing.strategies.lowest_cost import LowestCost
from gateway.balancing.strategies.lowest_latency import LowestLatency
from gateway.balancing.strategies.predictive import Predictive
from gateway.balancing.strategies.rate_limit_aware import RateLimitAware
from gateway.balancing.strategies.round_robin import RoundRobin
from gateway.balancing.strategies.weighted import WeightBy, Weighted
from gateway.balancing.strategy import Strategy


@dataclass(frozen=True, slots=True)
class StrategyOptions:
    """What a pool may say beyond the name; each strategy takes what concerns it.

    `weight_by`: what weights follow. `threshold`: free share (0..1) below which `rate_limit_aware` turns away.
    `overflow_daily`: it spends daily limits only on overflow. `home_region`: where the gateway is. `cache_affinity`:
    keep conversations where the prompt cache is warm. `limits_are_caps`: `predictive` never goes above a configured
    limit, even where the provider grants more. `predicts`: false turns the learning of `predictive` off.
    """

    weight_by: WeightBy = "fixed"
    threshold: float = 0.05
    overflow_daily: bool = False
    home_region: str | None = None
    cache_affinity: bool = False
    limits_are_caps: bool = False
    predicts: bool = True


_FACTORIES: Mapping[str, Callable[[StrategyOptions], Strategy]] = {
    "round_robin": lambda _: RoundRobin(),
    "weighted": lambda options: Weighted(options.weight_by),
    "least_connections": lambda _: LeastConnections(),
    "rate_limit_aware": lambda options: RateLimitAware(options.threshold, overflow_daily=options.overflow_daily),
    "predictive": lambda options: Predictive(
        options.threshold,
        overflow_daily=options.overflow_daily,
        limits_are_caps=options.limits_are_caps,
        learns=options.predicts,
    ),
    "lowest_latency": lambda _: LowestLatency(),
    "lowest_cost": lambda _: LowestCost(),
    "geographic": lambda options: Geographic(options.home_region),
    "adaptive": lambda _: Adaptive(),
}

STRATEGY_NAMES: tuple[str, ...] = tuple(_FACTORIES)
MODIFIER = "cache_affinity"
TENANTS_DEFAULT = "default"
"""What a pool says that leaves the choice to its tenant."""
DEFAULT = "rate_limit_aware"
"""What is used where neither a pool nor its tenant says anything."""

ALIASES: Mapping[str, str] = {
    "weighted_round_robin": "weighted",
    "smooth_weighted": "weighted",
    "simple_shuffle": "weighted",
    "roundrobin": "round_robin",
    "least_conn": "least_connections",
    "least_busy": "least_connections",
    "usage_based": "rate_limit_aware",
    "usage_based_routing": "rate_limit_aware",
    "latency": "lowest_latency",
    "latency_based_routing": "lowest_latency",
    "cost": "lowest_cost",
    "cost_based_routing": "lowest_cost",
    "geo": "geographic",
    "nearest": "geographic",
    "p2c": "adaptive",
    "learned": "predictive",
}
"""Other names by which peers and users know them."""
ACCEPTED: Mapping[str, str] = {
    written: canonical
    for name, plain in ({name: name for name in STRATEGY_NAMES} | dict(ALIASES)).items()
    for written, canonical in ((name, plain), (f"{name}+{MODIFIER}", f"{plain}+{MODIFIER}"))
}
"""What a pool may be set to, and the canonical name of each."""


class UnknownStrategy(ValueError):
    """No strategy has this name; the message lists those that exist."""


def _split(name: str) -> tuple[str, bool]:
    """Give the plain name, and whether the modifier was asked for ("weighted+cache_affinity", "cache_affinity")."""
    parts = [part.strip().lower().replace("-", "_").replace(" ", "_") for part in name.split("+")]
    affine = MODIFIER in parts
    rest = [part for part in parts if part != MODIFIER]
    if len(rest) > 1:
        return "", affine
    plain = rest[0] if rest else "rate_limit_aware"
    return ALIASES.get(plain, plain), affine


def canonical_name(name: str) -> str:
    """Give the name by which `make_strategy` calls it; dashes, spaces and case do not matter."""
    plain, affine = _split(name)
    if plain not in _FACTORIES:
        known = ", ".join(STRATEGY_NAMES)
        raise UnknownStrategy(f"unknown strategy {name[:64]!r}: use one of {known}, each also with +{MODIFIER}")
    return f"{plain}+{MODIFIER}" if affine else plain


def make_strategy(name: str, options: StrategyOptions | None = None) -> Strategy:
    """Make a fresh strategy; raises `UnknownStrategy`."""
    options = options or StrategyOptions()
    plain, _, modifier = canonical_name(name).partition("+")
    strategy = _FACTORIES[plain](options)
    return CacheAffinity(strategy) if modifier or options.cache_affinity else strategy
