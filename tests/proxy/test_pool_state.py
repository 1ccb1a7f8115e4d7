"""What a pool's state says, to whom, and that looking on leaves no trace; callers who leave the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gateway.simulation.faults import Fault, FaultKind
from tests.fakes.provider import RunningProvider, provider_config, running_provider
from tests.proxy.harness import TENANT, Gateway, key, pool, running_gateway, tenant
from tests.proxy.scripted import Exchange, scripted_upstream

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def provider() -> Iterator[RunningProvider]:
    with running_provider(provider_config(a=10_000, b=10_000)) as running:
        yield running


def snapshot(provider: RunningProvider, **settings: Any) -> Any:
    keys = key("a", provider.base_url, max_in_flight=1, region="eu-1"), key("b", provider.base_url, weight=0)
    return tenant(
        pool("main", *keys, strategy="predictive", limits={"rpm": 600}, settings=settings, is_default=True),
        pool("other", key("c", provider.base_url)),
    )


async def state(gateway: Gateway, pool_name: str = "main") -> dict[str, Any]:
    reply = await gateway.call(f"/pools/{pool_name}/state", token="auditor")
    assert reply.status == 200, reply.body
    found: dict[str, Any] = reply.json()
    return found


async def test_it_says_what_is_believed_of_keys_quotas_and_queue(provider: RunningProvider) -> None:
    async with running_gateway(snapshot(provider, hedging={}, right_size=True)) as gateway:
        gateway.verifier.add("auditor", scopes=("usage:read",))
        assert (await gateway.call("/v1/chat/completions", CHAT)).status == 200
        found = await state(gateway)
        assert (found["pool"], found["strategy"], found["in_flight"]) == ("main", "predictive", 0)
        a = next(each for each in found["keys"] if each["key"] == "a")
        assert (a["region"], a["breaker"], a["picks"], a["outcomes"]) == ("eu-1", "closed", 1, {"ok": 1})
        used = next(each for each in found["quotas"] if each["id"] == a["quota_id"])
        (ledger,) = used["ledgers"]
        assert ledger["limits"]["rpm"][0] == pytest.approx(10_000)
        assert ledger["misconfigured"] == {} or "rpm" in ledger["misconfigured"]
        assert ledger["belief"] is not None
        estimated = {"est_input_tokens": 0, "est_output_tokens": 0, "est_cost_usd": 0.0}
        assert found["hedging"] == {"sent": 0, "won": 0, "lost": 0, "failed": 0, **estimated}
        assert found["right_size"] == {"sized": 0, "truncated": 0}
        assert "sim-key" not in str(found)
        await gateway.settled(1)
        assert len(gateway.usage.rows) == 1, "looking on is no use"


async def test_the_queue_is_seen_and_who_leaves_it_is_gone(provider: RunningProvider) -> None:
    provider.fault("a", Fault(kind=FaultKind.HANG, delay_s=30.0))
    one = tenant(pool("main", key("a", provider.base_url, max_in_flight=1), is_default=True))
    async with running_gateway(one) as gateway:
        gateway.verifier.add("auditor", scopes=("usage:read",))
        calls = [
            asyncio.create_task(gateway.call("/v1/chat/completions", CHAT, headers={"x-llm-proxy-priority": priority}))
            for priority in ("1", "0", "1")
        ]

        async def waiting() -> int:
            return int((await state(gateway))["queue"]["waiting"])

        async with asyncio.timeout(10):
            while await waiting() < 2:
                await asyncio.sleep(0.01)
            queue = (await state(gateway))["queue"]
            assert queue["by_client"] == {"app": 2}
            assert queue["oldest_s"] > 0.0
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            while await waiting():
                await asyncio.sleep(0.01)
        left = (await state(gateway))["queue"]
        assert left["left"] == 2
        assert left["served"] == 0
        await gateway.settled(3)
        assert {row.outcome for row in gateway.usage.rows} == {"abandoned"}


async def test_who_is_turned_away_while_others_wait_was_rate_limited(provider: RunningProvider) -> None:
    provider.fault("a", Fault(kind=FaultKind.HANG, delay_s=30.0))
    one = tenant(pool("main", key("a", provider.base_url, max_in_flight=1), settings={"max_waiting": 1}))
    async with running_gateway(one) as gateway:
        calls = [asyncio.create_task(gateway.call("/v1/chat/completions", CHAT)) for _ in range(2)]
        async with asyncio.timeout(10):
            runtime = gateway.directory.get(TENANT)
            assert runtime is not None
            while runtime.pools["main"].queue.waiting < 1:
                await asyncio.sleep(0.01)
        assert (await gateway.call("/v1/chat/completions", CHAT)).status == 429
        assert [row.outcome for row in gateway.usage.rows] == ["rate_limited"]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("/pools/main/state", "good", 403),
        ("/pools/main/state", "narrow", 404),
        ("/pools/none/state", "auditor", 404),
        ("/pools/other/state", "narrow", 200),
    ],
)
async def test_who_may_see_it(provider: RunningProvider, path: str, token: str, status: int) -> None:
    async with running_gateway(snapshot(provider)) as gateway:
        gateway.verifier.add("auditor", scopes=("usage:read",))
        gateway.verifier.add("narrow", scopes=("usage:read",), details=({"type": "llm_proxy", "pools": ["other"]},))
        assert (await gateway.call(path, token=token)).status == status


HOSTILE = "retry-after: 999999999\r\nretry-after-ms: -5\r\nx-ratelimit-reset-requests: 99999999h\r\n"


@pytest.mark.parametrize("status", [200, 400, 404, 429, 500, 529])
async def test_headers_correct_the_account_whatever_became_of_the_request(status: int) -> None:
    body = b'{"error": {"message": "no", "type": "invalid_request_error"}}' if status != 200 else b"{}"

    async def answer(exchange: Exchange) -> None:
        told = "x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 7\r\nopenai-organization: org-1\r\n"
        head = (
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{told}{HOSTILE}"
        )
        await exchange.send(f"{head}\r\n".encode() + body)

    async with scripted_upstream(answer) as upstream:
        retry = {"max_attempts": 1, "max_pause_s": 0}
        keys = pool(
            "main", key("a", upstream.base_url), limits={"rpm": 1_000}, settings={"retry": retry}, is_default=True
        )
        async with running_gateway(tenant(keys)) as gateway:
            gateway.verifier.add("auditor", scopes=("usage:read",))
            reply = await gateway.call("/v1/chat/completions", CHAT)
            assert status < 400 or float(reply.headers.get("retry-after", 0)) <= 3600.0
            (quota,) = (await state(gateway))["quotas"]
            (ledger,) = quota["ledgers"]
            limit, left = ledger["limits"]["rpm"]
            assert (limit, ledger["sources"]["rpm"]) == (60.0, "provider")
            assert left == pytest.approx(7.0, abs=1.5)
            assert ledger["misconfigured"] == {"rpm": [1_000, 60]}
            assert quota["known_as"] == ["org-1"]
            assert ledger["cooldown_s"] <= 300.0


@pytest.mark.parametrize("says", ["max organization concurrency: 2, please try again after 1 seconds", ""])
async def test_callers_of_a_provider_that_caps_what_is_in_flight_do_not_see_it(says: str) -> None:
    """Two at a time, whether it says so or not; twelve come at once."""
    running, most = 0, 0
    go = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        nonlocal running, most
        running += 1
        status, body = 200, b'{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'
        if running > 2:
            message = f"request reached {says}" if says else "Number of concurrent connections has exceeded your limit."
            status, body = 429, msgspec.json.encode({"error": {"message": message, "type": "rate_limit_error"}})
        else:
            most = max(most, running)
            await go.wait()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        running -= 1
        await exchange.send(head.encode() + body)

    async with scripted_upstream(answer) as upstream:
        keys = pool("main", key("a", upstream.base_url), settings={"retry": {"max_attempts": 10}}, is_default=True)
        async with running_gateway(tenant(keys)) as gateway:
            gateway.verifier.add("auditor", scopes=("usage:read",))
            calls = [asyncio.create_task(gateway.call("/v1/chat/completions", CHAT)) for _ in range(12)]
            async with asyncio.timeout(20):
                while True:
                    ledgers = (await state(gateway))["quotas"][0]["ledgers"]
                    if ledgers and ledgers[0]["limits"].get("concurrency", [9])[0] == 2:
                        break
                    await asyncio.sleep(0.01)
            go.set()
            replies = await asyncio.gather(*calls)
            assert [reply.status for reply in replies] == [200] * 12
            assert most == 2
            (ledger,) = (await state(gateway))["quotas"][0]["ledgers"]
            assert ledger["limits"]["concurrency"] == [2.0, 2.0]
            assert ledger["sources"]["concurrency"] == ("provider" if says else "learned")
