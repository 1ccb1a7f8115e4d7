"""What is compared in a replay: the strategies, and the baselines that show what each part of the balancer is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.balancing.semantics import Semantics, SemanticsOf, semantics_of
from gateway.balancing.strategies.registry import MODIFIER, STRATEGY_NAMES, canonical_name, make_strategy
from gateway.balancing.strategy import Strategy

ORACLE = "oracle"
"""The bound: see `oracle.py`."""
BLIND = "blind"
PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Contender:
    """A strategy under a name, and what it is allowed to know.

    `semantics`: how it believes that providers count; `knows_limits`: it is told the configured limits; `hears`: it
    sees response headers. `sizes`: `max_tokens` are right-sized; `late_lane`: who is late steps aside in the queue.
    """

    name: str
    make: Callable[[], Strategy]
    semantics: SemanticsOf = semantics_of
    knows_limits: bool = True
    hears: bool = True
    sizes: bool = False
    late_lane: bool = False


_BUCKET = Semantics(minute="continuous")


def _one_bucket(_provider: str) -> Semantics:
    return _BUCKET


BASELINES: Mapping[str, Contender] = {
    # Most clients that have a list of keys do this.
    BLIND: Contender(BLIND, lambda: make_strategy("round_robin"), knows_limits=False, hears=False),
    # Most gateways that count do this: a bucket of input and output for every provider, corrected by headers.
    PLAIN: Contender(PLAIN, lambda: make_strategy("rate_limit_aware"), semantics=_one_bucket),
}


def contender(name: str) -> Contender:
    """Give a baseline or a strategy by name; raises `UnknownStrategy`."""
    if name in BASELINES:
        return BASELINES[name]
    known = canonical_name(name)
    return Contender(known, lambda: make_strategy(known))


ALL_NAMES: tuple[str, ...] = (*BASELINES, *STRATEGY_NAMES, f"adaptive+{MODIFIER}")
