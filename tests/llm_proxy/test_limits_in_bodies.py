"""Limits that only a refusal's body tells, from a simulated Gemini on a real socket to what the balancer does next."""

from __future__ import annotations

import time

import pytest

from gateway.balancing.pacific import next_midnight
from gateway.balancing.quota import Limits
from gateway.simulation.config import KeyConfig, Latency, ProviderConfig
from llm_proxy import LoadBalancer, RateLimited
from tests.fakes.provider import RunningProvider, running_provider
from tests.llm_proxy.conftest import HELLO

MODEL = "gemini-2.5-flash"
TEN_TO_THE_MINUTE = 1_790_000_030.0
"""So soon the refusal asks to come back."""


def gemini(**limits: Limits) -> ProviderConfig:
    keys = tuple(
        KeyConfig(secret=f"AIza-sim-{name}", name=name, limits=each, style="gemini") for name, each in limits.items()
    )
    return ProviderConfig(keys=keys, latency=Latency(first_byte_s=0.0))


def balancer_of(running: RunningProvider) -> LoadBalancer:
    entries = [
        {"name": name, "provider": "gemini", "api_key": f"AIza-sim-{name}", "base_url": running.base_url}
        for name in running.requests
    ]
    return LoadBalancer({"providers": entries, "strategy": "round_robin", "failover": True})


def test_the_day_of_one_key_is_spent_and_another_serves() -> None:
    config = gemini(spent=Limits(rpd=2), whole=Limits(rpd=10_000))
    with running_provider(config, clock=lambda: TEN_TO_THE_MINUTE) as running, balancer_of(running) as balancer:
        assert all(balancer.complete(model=MODEL, messages=HELLO).text for _ in range(20))
        assert running.requests == {"spent": 3, "whole": 18}


def test_who_finds_every_day_spent_is_told_to_come_back_after_midnight() -> None:
    config = gemini(spent=Limits(rpd=2))
    with running_provider(config, clock=lambda: TEN_TO_THE_MINUTE) as running, balancer_of(running) as balancer:
        for _ in range(2):
            balancer.complete(model=MODEL, messages=HELLO)
        with pytest.raises(RateLimited):
            balancer.complete(model=MODEL, messages=HELLO)
        with pytest.raises(RateLimited) as refused:
            balancer.complete(model=MODEL, messages=HELLO)
        now = time.time()
        assert refused.value.retry_after_s == pytest.approx(next_midnight(now) - now, abs=5.0)
        assert running.requests == {"spent": 3}
