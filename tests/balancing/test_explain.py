"""Explanations name every candidate, what excludes it and its score, and change nothing."""

from __future__ import annotations

from dataclasses import replace

from gateway.balancing.decision import Refusal
from gateway.balancing.hints import Hint
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.quota import Limits
from tests.balancing.pools import ASK, end, endpoint, pick, pool, serve


def test_each_exclusion_is_named_with_its_end() -> None:
    names = ("good", "tried", "cooling", "rejected", "busy", "full", "dead")
    keys = [endpoint(name, max_in_flight=1 if name == "busy" else None) for name in names]
    balancer = pool(*keys, strategy="least_connections", limits={"q-full": Limits(rpm=1)})

    def only(name: str) -> object:
        return replace(ASK, excluded=frozenset(names) - {name})

    end(balancer, pick(balancer, only("cooling")), OutcomeKind.RATE_LIMITED, hint=Hint(retry_after_s=9.0))  # type: ignore[arg-type]
    serve(balancer, only("rejected"), kind=OutcomeKind.AUTH_REJECTED)  # type: ignore[arg-type]
    pick(balancer, only("busy"))  # type: ignore[arg-type]
    serve(balancer, only("full"))  # type: ignore[arg-type]
    for _ in range(3):
        serve(balancer, only("dead"), kind=OutcomeKind.TIMEOUT)  # type: ignore[arg-type]
    before = balancer.view(0.0)
    said = balancer.explain(replace(ASK, excluded=frozenset({"tried"})), 0.0)
    assert balancer.view(0.0) == before
    assert said.strategy == "least_connections"
    by_id = {row.endpoint_id: row for row in said.considered}
    assert {name: row.excluded for name, row in by_id.items()} == {
        "good": None,
        "tried": "tried",
        "cooling": "cooling",
        "rejected": "ejected",
        "busy": "busy",
        "full": "limited",
        "dead": "breaker",
    }
    assert by_id["cooling"].until == 9.0
    assert by_id["busy"].until is None
    assert by_id["good"].score == 1.0
    assert by_id["cooling"].headroom == 0.0


def test_refusals_are_explained() -> None:
    assert pool().explain(ASK, 0.0).refused is Refusal.NO_ENDPOINTS
    assert pool(endpoint("a")).explain(replace(ASK, dialect="gemini"), 0.0).refused is Refusal.NO_MODEL


def test_levels_come_in_the_order_in_which_they_are_tried() -> None:
    balancer = pool(endpoint("spare", 0), endpoint("low", tier=3), endpoint("top", tier=0), strategy="round_robin")
    critical = balancer.explain(replace(ASK, priority=0), 0.0).considered
    assert [(row.endpoint_id, row.level) for row in critical] == [
        ("top", "tier 0"),
        ("low", "tier 3"),
        ("spare", "standby"),
    ]
    assert [row.endpoint_id for row in balancer.explain(ASK, 0.0).considered] == ["low", "top", "spare"]
