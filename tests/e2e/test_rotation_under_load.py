"""Keys that change under a constant load of plain and streaming requests: nobody notices, and no old secret is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
import pytest

from tests.e2e.conftest import RunningGateway
from tests.e2e.provider import SeparateProvider, run_provider

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a long story."}]
FIRST = {driver: f"sk-sim-first-{driver}-000001" for driver in ("openai", "openrouter", "xai", "azure")}
# Drains end with their last request, long before their deadline: otherwise the steps below time out.
QUICK = {"probes": 2, "probe_interval_s": 0, "drain_s": 600, "retain_s": 0}
STEP_TIMEOUT_S = 60


@dataclass
class Pool:
    """One pool with one key whose secrets come from one driver."""

    driver: str
    key_id: str
    asked: int = 0
    failures: list[str] = field(default_factory=list)
    counts_when_drained: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeparateProvider]:
    names = {driver: f"first-{driver}" for driver in FIRST} | {"azure": "a1-Key1"}
    keys = [{"secret": secret, "name": names[driver]} for driver, secret in FIRST.items()]
    latency = {"first_byte_s": 0.01, "per_token_s": 0.005}
    config = {"keys": keys, "latency": latency, "answer_tokens": 40}
    with run_provider(tmp_path_factory.mktemp("minting"), config) as running:
        yield running


class Api:
    """The tenant's own program at the management API."""

    def __init__(self, gateway: RunningGateway, provider: SeparateProvider) -> None:
        self.http = httpx2.AsyncClient(
            base_url=gateway.base_url, headers={"authorization": f"Bearer {gateway.token()}"}, timeout=30
        )
        self.provider = provider

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        answer = await self.http.request(method, f"/api/v1{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json()

    async def make_pool(self, driver: str, run: str) -> Pool:
        url = self.provider.base_url
        where: dict[str, Any] = {"openai": {"project_id": "p1"}, "openrouter": {}, "xai": {"team_id": "t1"}}.get(
            driver, {}
        )
        if driver == "azure":
            names = {"directory_id": "d", "client_id": "c", "subscription_id": "s", "resource_group": "g"}
            where = {**names, "account": "a1", "login_url": url}
        config = {**where, "base_url": url}
        source = await self.call(
            "POST",
            "/sources",
            {"name": f"{driver}-{run}", "driver": driver, "config": config, "credential": "sim-admin-key"},
        )
        pool = await self.call("POST", "/pools", {"name": f"{driver}-{run}", "strategy": "round_robin"})
        entry = {"name": "only", "provider": "simulated", "api_key": FIRST[driver], "base_url": url}
        key = await self.call("POST", f"/pools/{pool['id']}/keys", entry)
        await self.call("PUT", f"/keys/{key['id']}/rotation", {"source_id": source["id"], "settings": QUICK})
        return Pool(driver, key["id"])

    async def versions(self, pool: Pool) -> dict[int, dict[str, Any]]:
        listed = await self.call("GET", f"/keys/{pool.key_id}/versions")
        return {version["number"]: version for version in listed["items"]}

    async def until(self, pool: Pool, number: int, *states: str) -> dict[str, Any]:
        give_up = asyncio.get_running_loop().time() + STEP_TIMEOUT_S
        while (version := (await self.versions(pool))[number])["state"] not in states:
            assert version["state"] not in {"failed", "orphaned"}, version
            assert asyncio.get_running_loop().time() < give_up, f"{pool.driver}: it stays {version}"
            await asyncio.sleep(0.05)
        return version

    def requests(self) -> dict[str, int]:
        return {name: count["requests"] for name, count in self.provider.counts().items()}


async def keep_asking(client: openai.AsyncOpenAI, pool: Pool, done: asyncio.Event, *, stream: bool) -> None:
    while not done.is_set():
        pool.asked += 1
        try:
            if stream:
                pieces = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True)
                reasons = [chunk.choices[0].finish_reason async for chunk in pieces if chunk.choices]
                assert reasons[-1] is not None, "the stream ended before its end"
            else:
                answer = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
                assert answer.choices[0].message.content
        except (openai.OpenAIError, AssertionError) as error:
            pool.failures.append(repr(error))


@asynccontextmanager
async def load(gateway: RunningGateway, pool: Pool, run: str) -> AsyncIterator[None]:
    done = asyncio.Event()
    base_url = f"{gateway.base_url}/pools/{pool.driver}-{run}/v1"
    async with (
        openai.AsyncOpenAI(base_url=base_url, api_key=gateway.token(), max_retries=0) as client,
        asyncio.TaskGroup() as group,
    ):
        for stream in (True, False):
            group.create_task(keep_asking(client, pool, done, stream=stream))
        try:
            yield
        finally:
            done.set()


async def rotate(api: Api, pool: Pool, times: int) -> None:
    draining: set[asyncio.Task[None]] = set()

    async def drained(number: int, name: str) -> None:
        await api.until(pool, number, "disabled", "revoked")
        pool.counts_when_drained[name] = (await asyncio.to_thread(api.requests))[name]
        await api.until(pool, number, "revoked")

    name = f"first-{pool.driver}"
    for number in range(1, times + 1):
        await api.call("POST", f"/keys/{pool.key_id}/rotate", {})
        version = await api.until(pool, number + 1, "current")
        if pool.driver != "azure":  # whose old secret is overwritten by the next one, and refused from then on
            draining.add(asyncio.create_task(drained(number, name)))
            name = f"llm-proxy-{version['id']}"
    await asyncio.gather(*draining)


async def prove(gateway: RunningGateway, provider: SeparateProvider, drivers: list[str], times: int, run: str) -> None:
    api = Api(gateway, provider)
    pools = [await api.make_pool(driver, run) for driver in drivers]
    before = await asyncio.to_thread(api.requests)
    async with asyncio.TaskGroup() as group:

        async def one(pool: Pool) -> None:
            async with load(gateway, pool, run):
                await rotate(api, pool, times)
                asked = pool.asked
                async with asyncio.timeout(STEP_TIMEOUT_S):
                    while pool.asked < asked + 10:
                        await asyncio.sleep(0.01)

        for pool in pools:
            group.create_task(one(pool))
    after = await asyncio.to_thread(api.requests)
    await api.http.aclose()
    for pool in pools:
        assert pool.failures == [], f"{pool.driver}: {len(pool.failures)} of {pool.asked} failed"
        used_later = {
            name: after[name] - count for name, count in pool.counts_when_drained.items() if after[name] != count
        }
        assert used_later == {}, f"{pool.driver}: an old secret was used after its drain"
    assert sum(after.values()) - sum(before.values()) >= sum(pool.asked for pool in pools)
    answer = httpx2.get(f"{provider.base_url}/_sim/state").json()
    assert answer["unknown_key_requests"] == 0
    alive = httpx2.get(f"{provider.base_url}/_sim/administration").json()["keys"]
    assert len({key["scope"] for key in alive}) == len(alive), "one living key an account, and no orphan"


async def test_ten_rotations_in_a_row(gateway: RunningGateway, provider: SeparateProvider) -> None:
    await prove(gateway, provider, ["openai", "openrouter"], times=10, run="ten")


async def test_two_rotations_of_the_other_sources(gateway: RunningGateway, provider: SeparateProvider) -> None:
    await prove(gateway, provider, ["xai", "azure"], times=2, run="two")


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_two_hundred_rotations_in_a_row(gateway: RunningGateway, tmp_path: Any) -> None:
    with run_provider(
        tmp_path,
        {
            "keys": [{"secret": FIRST["openai"], "name": "first-openai"}],
            "latency": {"first_byte_s": 0.01, "per_token_s": 0.005},
            "answer_tokens": 40,
        },
    ) as provider:
        await prove(gateway, provider, ["openai"], times=200, run="many")
