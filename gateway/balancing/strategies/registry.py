"""Strategies by name; adding one is adding a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gateway.balancing.strategies.least_connections import LeastConnections
from gateway.balancing.strategies.rate_limit_aware import RateLimitAware
from gateway.balancing.strategies.round_robin import RoundRobin
from gateway.balancing.strategies.weighted import Weighted
from gateway.balancing.strategy import Strategy

_FACTORIES: Mapping[str, Callable[[], Strategy]] = {
    "round_robin": RoundRobin,
    "weighted": Weighted,
    "least_connections": LeastConnections,
    "rate_limit_aware": RateLimitAware,
}

STRATEGY_NAMES: tuple[str, ...] = tuple(_FACTORIES)

ALIASES: Mapping[str, str] = {
    "weighted_round_robin": "weighted",
    "smooth_weighted": "weighted",
    "simple-shuffle": "weighted",
    "roundrobin": "round_robin",
    "least_conn": "least_connections",
    "least_busy": "least_connections",
    "usage_based": "rate_limit_aware",
    "usage-based-routing": "rate_limit_aware",
}
"""Other names by which peers and users know them."""


class UnknownStrategy(ValueError):
    """No strategy has this name; the message lists those that exist."""


def canonical_name(name: str) -> str:
    """Give the name in `STRATEGY_NAMES` for a name or alias; dashes, spaces and case do not matter."""
    folded = name.strip().lower()
    plain = folded.replace("-", "_").replace(" ", "_")
    found = ALIASES.get(folded) or ALIASES.get(plain) or plain
    if found not in _FACTORIES:
        raise UnknownStrategy(f"unknown strategy {name[:64]!r}: use one of {', '.join(STRATEGY_NAMES)}")
    return found


def make_strategy(name: str) -> Strategy:
    """Make a fresh strategy; raises `UnknownStrategy`."""
    return _FACTORIES[canonical_name(name)]()
