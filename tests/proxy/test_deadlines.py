"""A deadline that the caller names: nobody waits, is retried or listens past it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from gateway.simulation.faults import Fault, FaultKind
from tests.fakes.provider import RunningProvider, provider_config, running_provider
from tests.proxy.harness import key, pool, running_gateway, tenant

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def provider() -> Iterator[RunningProvider]:
    with running_provider(provider_config(a=10_000, b=10_000)) as running:
        yield running


async def test_who_cannot_be_served_in_time_is_told_at_once(provider: RunningProvider) -> None:
    snapshot = tenant(
        pool("main", key("a", provider.base_url), limits={"rpm": 2}, settings={"retry": {"max_pause_s": 60}})
    )
    async with running_gateway(snapshot) as gateway:
        for _ in range(2):
            assert (await gateway.call("/v1/chat/completions", CHAT)).status == 200
        reply = await gateway.call("/v1/chat/completions", CHAT, headers={"x-llm-proxy-deadline": "0.5"})
        assert reply.status == 429
        assert int(reply.headers["retry-after"]) >= 10
        assert (await gateway.settled(3))[-1].total_ms < 400


async def test_an_answer_that_does_not_begin_in_time_is_given_up(provider: RunningProvider) -> None:
    provider.fault("a", Fault(kind=FaultKind.HANG, delay_s=30.0))
    settings = {"fallbacks": [{"pool": "other"}], "deadlines": {"total_s": 20}}
    snapshot = tenant(
        pool("main", key("a", provider.base_url), settings=settings, is_default=True),
        pool("other", key("b", provider.base_url)),
    )
    async with running_gateway(snapshot) as gateway:
        reply = await gateway.call("/v1/chat/completions", CHAT, headers={"x-llm-proxy-deadline": "0.2"})
        assert reply.status == 504
        assert (await gateway.row()).attempts == 1
        assert provider.use("b").requests == 0, "nothing falls back past the deadline"


async def test_nobody_gets_a_key_too_late_to_be_answered(provider: RunningProvider) -> None:
    one = tenant(pool("main", key("a", provider.base_url, max_in_flight=1)))
    async with running_gateway(one) as gateway:
        provider.fault("a", Fault(kind=FaultKind.DELAY, delay_s=0.4))
        first = asyncio.create_task(gateway.call("/v1/chat/completions", CHAT))
        assert (await first).status == 200, "the pool is known to take 0.4 s"
        held = asyncio.create_task(gateway.call("/v1/chat/completions", CHAT))
        await asyncio.sleep(0.02)
        reply = await gateway.call("/v1/chat/completions", CHAT, headers={"x-llm-proxy-deadline": "0.6"})
        assert reply.status == 429, "its turn would come after 0.4 s, and its answer after 0.8"
        assert (await held).status == 200
        assert provider.use("a").requests == 2, "nothing was sent to be cut"


async def test_who_waits_is_told_how_many_stood_before(provider: RunningProvider) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url, max_in_flight=1)))) as gateway:
        replies = await asyncio.gather(*(gateway.call("/v1/chat/completions", CHAT) for _ in range(5)))
        behind = sorted(
            int(reply.headers["x-llm-proxy-queued-behind"])
            for reply in replies
            if "x-llm-proxy-queued-behind" in reply.headers
        )
        assert behind == list(range(len(behind)))
        assert len(behind) >= 3


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "1e3", "٣", "99999999"])
async def test_what_is_no_number_of_seconds_is_refused(provider: RunningProvider, value: str) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
        reply = await gateway.call("/v1/chat/completions", CHAT, headers={"x-llm-proxy-deadline": value})
        assert reply.status == 400
        assert "x-llm-proxy-deadline" in reply.json()["error"]["message"]
