"""Balancers over a simulated provider on a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llm_proxy import LoadBalancer
from tests.fakes.provider import RunningProvider, provider_config, running_provider

HELLO = [{"role": "user", "content": "Hello!"}]
WEIGHTS = {"primary": 50, "secondary": 30, "tertiary": 20}


def document(provider: RunningProvider, strategy: str = "weighted_round_robin", **more: Any) -> dict[str, Any]:
    """Name the provider's keys in the familiar shape; `more` are members of each entry."""
    keys = [
        {
            "name": name,
            "provider": "simulated",
            "api_key": f"sim-key-{name}",
            "base_url": provider.base_url,
            "weight": weight,
            **more,
        }
        for name, weight in WEIGHTS.items()
    ]
    return {"providers": keys, "strategy": strategy, "failover": True}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningProvider]:
    with running_provider(provider_config(primary=60_000, secondary=60_000, tertiary=60_000)) as running:
        yield running


@pytest.fixture
def provider(server: RunningProvider) -> RunningProvider:
    """The module's provider, healthy and with all counts at zero."""
    server.reset()
    for name in WEIGHTS:
        server.fault(name)
        server.restore(name)
    return server


@pytest.fixture
def balancer(provider: RunningProvider) -> Iterator[LoadBalancer]:
    with LoadBalancer(document(provider)) as made:
        yield made
