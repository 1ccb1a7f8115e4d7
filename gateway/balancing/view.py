"""What the balancer believes at one moment, as plain values for dashboards, metrics and the state API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LedgerView:
    """One model family of a quota: `limits` maps rpm, tpm, … to (limit, available); `headroom` is 0..1.

    `cooldown_s` is what is left of a cool-down, 0 when none. `misconfigured` maps to (configured, told) where the
    configuration promises more than the provider grants.
    """

    family: str
    headroom: float
    cooldown_s: float
    rate_limited: int
    limits: Mapping[str, tuple[float, float]]
    misconfigured: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class QuotaView:
    """A quota with the families used so far; `known_as` are the provider's own names for it, from headers."""

    id: str
    in_flight: int
    known_as: tuple[str, ...]
    ledgers: tuple[LedgerView, ...]


@dataclass(frozen=True, slots=True)
class EndpointView:
    """One key: `breaker` is closed, open, ejected or half_open, for `breaker_s` more; `first_byte_s` None: not seen."""

    id: str
    quota_id: str
    provider: str
    region: str | None
    in_flight: int
    picks: int
    breaker: str
    breaker_s: float
    failure_share: float
    first_byte_s: float | None
    outcomes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class BalancerView:
    """All of it."""

    strategy: str
    in_flight: int
    endpoints: tuple[EndpointView, ...]
    quotas: tuple[QuotaView, ...]
