"""What a pool is for: callers don't notice keys that are full or dead."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import httpx2
import openai
import pytest

from tests.e2e.conftest import RunningGateway, free_port
from tests.e2e.provider import SeparateProvider, run_provider

FULL, ALIVE = "sk-sim-always-full-000000000001", "sk-sim-alive-0000000000000002"
REQUESTS = 1_000


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeparateProvider]:
    keys = [
        {"secret": FULL, "name": "full", "faults": [{"kind": "status", "status": 429}]},
        {"secret": ALIVE, "name": "alive"},
    ]
    with run_provider(tmp_path_factory.mktemp("provider"), {"keys": keys}) as running:
        yield running


@pytest.fixture(scope="module")
def pool(gateway: RunningGateway, token: str, provider: SeparateProvider) -> str:
    dead_url = f"http://127.0.0.1:{free_port()}"
    body = {
        "name": "half-broken",
        "strategy": "round_robin",
        "failover": True,
        "providers": [
            {"name": "full", "provider": "simulated", "base_url": provider.base_url, "api_key": FULL},
            {"name": "dead", "provider": "simulated", "base_url": dead_url, "api_key": "sk-sim-dead-00000000000003"},
            {"name": "alive", "provider": "simulated", "base_url": provider.base_url, "api_key": ALIVE},
        ],
    }
    answer = httpx2.post(
        f"{gateway.base_url}/api/v1/pools/import", json=body, headers={"authorization": f"Bearer {token}"}
    )
    assert answer.status_code == 201, answer.text
    return "half-broken"


async def test_a_thousand_requests_meet_a_full_and_a_dead_key(
    gateway: RunningGateway, token: str, pool: str, provider: SeparateProvider
) -> None:
    served = Counter[str]()
    failed: list[Exception] = []
    gate = asyncio.Semaphore(16)

    async def ask(client: openai.AsyncOpenAI) -> None:
        async with gate:
            try:
                raw = await client.chat.completions.with_raw_response.create(
                    model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello!"}]
                )
            except openai.OpenAIError as error:
                failed.append(error)
            else:
                assert raw.parse().choices[0].message.content
                served[raw.headers["x-llm-proxy-key"]] += 1

    async with openai.AsyncOpenAI(
        base_url=f"{gateway.base_url}/pools/{pool}/v1", api_key=token, max_retries=0
    ) as client:
        await asyncio.gather(*(ask(client) for _ in range(REQUESTS)))
    assert failed == []
    assert served == {"alive": REQUESTS}
    assert provider.counts()["alive"]["requests"] == REQUESTS


def test_usage_says_how_often_each_request_was_tried(gateway: RunningGateway, token: str, pool: str) -> None:
    raw = httpx2.post(
        f"{gateway.base_url}/pools/{pool}/v1/chat/completions",
        json={"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello!"}]},
        headers={"authorization": f"Bearer {token}"},
    )
    assert raw.status_code == 200
    assert int(raw.headers["x-llm-proxy-attempts"]) >= 1


def test_a_pool_file_is_refused_with_the_entry_and_the_mend(gateway: RunningGateway, token: str) -> None:
    answer = httpx2.post(
        f"{gateway.base_url}/api/v1/pools/import",
        json={"providers": [{"name": "x", "weight": -1}], "strategy": "best_effort"},
        headers={"authorization": f"Bearer {token}"},
    )
    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert {error["pointer"] for error in answer.json()["errors"]} >= {"/providers/0/weight", "/strategy"}
