"""Stats tell what is known of a key, also where its quota turned out to be another one's."""

from __future__ import annotations

import pytest

from gateway.balancing.hints import Hint
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.quota import Limits
from llm_proxy.stats import make_stats
from tests.balancing.pools import ASK, end, endpoint, pick, pool


def test_keys_of_one_organisation_have_the_same_headroom() -> None:
    limits = Limits(rpm=10)
    balancer = pool(endpoint("a"), endpoint("b"), limits={"q-a": limits, "q-b": limits}, strategy="round_robin")
    for _ in range(10):
        end(balancer, pick(balancer, ASK), OutcomeKind.OK, hint=Hint(quota_name="acme"))
    stats = make_stats(balancer.view(30.0), waiting=0, open_connections=0, idle_connections=0)
    first, second = stats.keys
    assert first.headroom == second.headroom == pytest.approx(0.6)
