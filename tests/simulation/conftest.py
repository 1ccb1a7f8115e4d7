"""One provider for the SDK tests: keys `open` (no limits), `tight` (one request a minute)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.balancing.quota import Limits
from gateway.simulation.config import KeyConfig, Latency, ProviderConfig
from tests.fakes.provider import RunningProvider, running_provider

CONFIG = ProviderConfig(
    keys=(
        KeyConfig(secret="sim-key-open", name="open", limits=Limits(rpm=100_000, tpm=100_000_000)),
        KeyConfig(secret="sim-key-tight", name="tight", limits=Limits(rpm=1)),
    ),
    latency=Latency(first_byte_s=0.0),
)


@pytest.fixture(scope="module")
def running() -> Iterator[RunningProvider]:
    with running_provider(CONFIG) as provider:
        yield provider


@pytest.fixture
def provider(running: RunningProvider) -> RunningProvider:
    running.reset()
    for name in running.requests:
        running.fault(name)
        running.restore(name)
    return running
