"""The promise of a pool, held for ten minutes: no 429 below its capacity; above it the critical ones are served.

`make test-load-90`, `make test-load-130`. LOAD_SECONDS shortens them, LOAD_STRATEGY names another strategy.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx2
import pytest

from tests.e2e.conftest import RunningGateway
from tests.e2e.load import Kind, Run, dumped, jain, offer, pool_file, provider_config
from tests.e2e.provider import SeparateProvider, run_provider

SECONDS = float(os.environ.get("LOAD_SECONDS", "600"))
STRATEGY = os.environ.get("LOAD_STRATEGY", "predictive")
CLIENTS = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS * 2 + 300)]


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[SeparateProvider]:
    with run_provider(tmp_path, provider_config()) as running:
        yield running


class Clients:
    """Tokens of several clients of the tenant, renewed before they expire."""

    def __init__(self, gateway: RunningGateway, count: int) -> None:
        self._gateway = gateway
        owner = {"authorization": f"Bearer {gateway.token()}"}
        self._credentials = []
        for number in range(count):
            body = {"name": f"load-{time.monotonic_ns()}-{number}", "scopes": ["inference"]}
            made = httpx2.post(f"{gateway.base_url}/api/v1/clients", json=body, headers=owner)
            assert made.status_code == 201, made.text
            self._credentials.append((made.json()["client_id"], made.json()["client_secret"]))
        self._tokens: list[str] = []
        self._until = 0.0

    def __call__(self) -> Sequence[str]:
        if time.monotonic() > self._until:
            self._tokens = [self._token(*each) for each in self._credentials]
            self._until = time.monotonic() + 240.0
        return self._tokens

    def _token(self, client_id: str, secret: str) -> str:
        data = {"grant_type": "client_credentials"}
        answer = httpx2.post(self._gateway.token_url, data=data, auth=(client_id, secret))
        return str(answer.raise_for_status().json()["access_token"])


async def run_load(
    gateway: RunningGateway, provider: SeparateProvider, *, name: str, kinds: Sequence[Kind], load: float
) -> Run:
    owner = {"authorization": f"Bearer {gateway.token()}"}
    with httpx2.Client(base_url=gateway.base_url, headers=owner, timeout=30.0) as tenant:
        made = tenant.post("/api/v1/pools/import", json=pool_file(name, provider, STRATEGY))
        assert made.status_code == 201, made.text
        settings = {"settings": {"retry": {"max_pause_s": 120.0, "max_attempts": 8}}}
        tenant.patch(f"/api/v1/pools/{made.json()['id']}", json=settings).raise_for_status()
    clients: Callable[[], Sequence[str]] = Clients(gateway, CLIENTS)
    run = await offer(gateway, provider, clients, pool=name, kinds=kinds, load=load, seconds=SECONDS, seed=11)
    counts = {key: each["by_status"] for key, each in provider.counts().items()}
    report = {"strategy": STRATEGY, "seconds": SECONDS, "load": load, **run.report(kinds), "at_the_provider": counts}
    print(json.dumps(report, indent=1))
    if (directory := os.environ.get("LOAD_REPORT")) is not None:
        Path(directory, f"{name}.json").write_text(json.dumps(report, indent=1))
        Path(directory, f"{name}.jsonl").write_text(dumped(run))
    assert run.errors == []
    return run


async def test_at_90_percent_of_the_true_capacity_no_caller_sees_a_429(
    gateway: RunningGateway, provider: SeparateProvider
) -> None:
    run = await run_load(gateway, provider, name="load-90", kinds=[Kind("any", 1.0)], load=0.9)
    assert {each.status for each in run.seen} == {200}


CRITICAL = Kind("critical", 0.2, 0)
SOON, LATER = Kind("soon", 0.2, 1, 5.0), Kind("later", 0.3, 1, 20.0)
BATCH, PATIENT = Kind("batch", 0.15, 2, 20.0), Kind("patient batch", 0.15, 2, 90.0)


async def test_at_130_percent_the_critical_are_served_and_the_rest_by_priority_and_deadline(
    gateway: RunningGateway, provider: SeparateProvider
) -> None:
    kinds = [CRITICAL, SOON, LATER, BATCH, PATIENT]
    run = await run_load(gateway, provider, name="load-130", kinds=kinds, load=1.3)
    assert {each.status for each in run.of("critical")} == {200}
    refused = [each for each in run.seen if each.status == 429]
    assert refused
    assert all(each.retry_after is not None and int(each.retry_after) >= 1 for each in refused)
    deadlines = {kind.name: kind.deadline_s for kind in kinds}
    # Sent in time, and not answered in time: nobody listens past a deadline.
    cut = [each for each in run.seen if each.status == 504]
    assert len(cut) <= 0.002 * len(run.seen)
    assert all(each.took_s >= (deadlines[each.kind] or 120.0) - 0.5 for each in cut)
    assert all(each.took_s <= (deadlines[each.kind] or 120.0) + 2.0 for each in run.seen)
    # Fair: within a kind clients are served alike; of one priority who waits longer is served no less; nobody starves.
    for kind in kinds:
        assert jain(run.shares_by_client(kind.name)) >= 0.95, kind.name
    assert run.served_share("later") >= run.served_share("soon") - 0.03
    assert run.served_share("patient batch") >= run.served_share("batch") - 0.03
    assert run.served_share("later") >= run.served_share("batch") - 0.03, "at one deadline, by priority"
    assert run.served_share("patient batch") > 0.02
    served = sum(each.status == 200 for each in run.seen)
    assert served >= 0.9 * run.capacity
