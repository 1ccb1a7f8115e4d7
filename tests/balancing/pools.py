"""Small pools for the tests of the balancer and what drives it."""

from __future__ import annotations

from random import Random

from gateway.balancing.balancer import Balancer
from gateway.balancing.decision import Ask, Decision, Lease, Picked
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.hints import Hint
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.quota import Limits, Quota
from gateway.balancing.strategies.registry import StrategyOptions, make_strategy

ASK = Ask("gpt-4o", est_input_tokens=100, est_output_tokens=50)


def endpoint(name: str, weight: int = 1, **more: object) -> Endpoint:
    """Make a key with a quota of its own."""
    return Endpoint(**({"id": name, "quota_id": f"q-{name}", "provider": "simulated", "weight": weight} | more))  # type: ignore[arg-type]


def pool(
    *endpoints: Endpoint,
    strategy: str = "weighted",
    limits: dict[str, Limits] | None = None,
    provider: str = "simulated",
    seed: int = 1,
    options: StrategyOptions | None = None,
) -> Balancer:
    """Make a balancer; `limits` by quota id."""
    quotas = [Quota(name, each, provider) for name, each in (limits or {}).items()]
    return Balancer(endpoints, quotas, make_strategy(strategy, options), rng=Random(seed))


def picked(decision: Decision) -> Lease:
    """Give the lease of a decision that must be a pick."""
    assert isinstance(decision, Picked), decision
    return decision.lease


def pick(balancer: Balancer, ask: Ask = ASK, now: float = 0.0) -> Lease:
    """Acquire, which must succeed."""
    return picked(balancer.acquire(ask, now=now))


def end(
    balancer: Balancer, lease: Lease, kind: OutcomeKind = OutcomeKind.OK, now: float = 0.0, hint: Hint | None = None
) -> None:
    """Give a lease back."""
    balancer.observe(lease, Outcome(kind, hint=hint, first_byte_s=0.1, total_s=0.2), now=now)


def serve(balancer: Balancer, ask: Ask = ASK, now: float = 0.0, kind: OutcomeKind = OutcomeKind.OK) -> str:
    """Acquire and give back at once; gives the endpoint's id."""
    lease = pick(balancer, ask, now)
    end(balancer, lease, kind, now)
    return lease.endpoint.id
