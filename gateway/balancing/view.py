"""What the balancer believes at one moment, as plain values for dashboards, metrics and the state API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.balancing.ledger import Ledger
from gateway.balancing.predictor import BeliefView
from gateway.balancing.ready import EndpointState, QuotaState
from gateway.balancing.sharing import SharedQuotas


@dataclass(frozen=True, slots=True)
class LedgerView:
    """One model family of a quota: `limits` maps rpm, tpm, … to (limit, available); `headroom` is 0..1.

    `sources` maps the same to who says the limit: configured, provider (it named it) or learned (from what it did).
    `cooldown_s` is what is left of a cool-down, 0 when none. `misconfigured` maps to (configured, told) where the
    configuration promises more than the provider grants. `belief`: what `predictive` has learned.
    """

    family: str
    headroom: float
    cooldown_s: float
    rate_limited: int
    limits: Mapping[str, tuple[float, float]]
    misconfigured: Mapping[str, tuple[int, int]]
    sources: Mapping[str, str]
    in_flight: int
    belief: BeliefView | None = None


@dataclass(frozen=True, slots=True)
class QuotaView:
    """A quota with the families used so far; `known_as` are the provider's own names for it, from headers.

    `counted_as` is the quota that it turned out to be one with, None when it stands for itself. `concurrency`: how many
    requests may be in flight in this process, of all families together; None: any number.
    """

    id: str
    in_flight: int
    concurrency: int | None
    known_as: tuple[str, ...]
    counted_as: str | None
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
    """All of it; `outages` are the addresses and quotas whose keys failed together: open or half_open."""

    strategy: str
    in_flight: int
    endpoints: tuple[EndpointView, ...]
    quotas: tuple[QuotaView, ...]
    outages: Mapping[str, str] = field(default_factory=dict)


def view_endpoint(state: EndpointState, now: float) -> EndpointView:
    """Give one key as it is known now."""
    breaker, endpoint = state.breaker, state.endpoint
    return EndpointView(
        id=endpoint.id,
        quota_id=endpoint.quota_id,
        provider=endpoint.provider,
        region=endpoint.region,
        in_flight=state.in_flight,
        picks=state.picks,
        breaker=str(breaker.state(now)),
        breaker_s=max(0.0, breaker.until - now) if breaker.tripped else 0.0,
        failure_share=breaker.failure_share,
        first_byte_s=state.latency.read(now),
        outcomes={str(kind): count for kind, count in state.outcomes.items()},
    )


def view_ledger(family: str, ledger: Ledger, now: float) -> LedgerView:
    """Give one family's account as it is now."""
    return LedgerView(
        family=family,
        headroom=ledger.headroom(now),
        cooldown_s=max(0.0, ledger.cooldown.until - now),
        rate_limited=ledger.cooldown.limited,
        limits=ledger.limits(now),
        misconfigured=ledger.misconfigured(),
        sources=ledger.sources(),
        in_flight=ledger.concurrency.in_flight,
        belief=ledger.learner.view(now) if ledger.learner is not None else None,
    )


def view_quota(quota_id: str, quota: QuotaState, shared: SharedQuotas, now: float) -> QuotaView:
    """Give one quota as it is known now."""
    stands = shared.stands_for(quota_id)
    return QuotaView(
        id=quota_id,
        in_flight=quota.in_flight,
        concurrency=quota.slots,
        known_as=shared.names(quota_id),
        counted_as=stands if stands != quota_id else None,
        ledgers=tuple(view_ledger(family, ledger, now) for family, ledger in quota.ledgers.items()),
    )
