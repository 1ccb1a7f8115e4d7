"""What is kept of a request: why it went where it went, and the region of every attempt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gateway.metering.explanations import StoredExplanation
from gateway.metering.reports import residency_of
from gateway.simulation.faults import Fault, FaultKind
from tests.fakes.provider import RunningProvider, provider_config, running_provider
from tests.proxy.harness import Gateway, key, pool, running_gateway, tenant

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
DOWN = Fault(kind=FaultKind.STATUS, status=503)
ASKED = {"x-llm-proxy-explain": "true"}


class Kept(list[StoredExplanation]):
    def record(self, row: StoredExplanation) -> None:
        self.append(row)


@pytest.fixture
def provider() -> Iterator[RunningProvider]:
    with running_provider(provider_config(a=10_000, b=10_000, c=10_000)) as running:
        yield running


def keeping(gateway: Gateway) -> Kept:
    kept = Kept()
    gateway.data_path._explanations = kept
    gateway.verifier.add("good", scopes=("inference", "usage:read"))
    return kept


def three(provider: RunningProvider, **settings: Any) -> Any:
    return tenant(
        pool("main", key("a", provider.base_url, region="eu-1"), key("b", provider.base_url, region="us-1"),
             settings=settings, is_default=True),
        pool("other", key("c", provider.base_url, region="eu-2")),
    )  # fmt: skip


async def test_a_request_that_asked_is_kept_with_every_pool_it_tried(provider: RunningProvider) -> None:
    provider.fault("a", DOWN)
    provider.fault("b", DOWN)
    async with running_gateway(three(provider, fallbacks=[{"pool": "other"}])) as gateway:
        kept = keeping(gateway)
        reply = await gateway.call("/v1/chat/completions", CHAT, headers=ASKED)
        assert reply.headers["x-llm-proxy-pool"] == "other"
        await gateway.settled(1)
        (row,) = kept
        assert row.request_id == reply.headers["x-llm-proxy-request-id"]
        assert [each["pool"] for each in row.pools] == ["main", "other"]
        tried = [(one["key"], one["region"], one["outcome"]) for each in row.pools for one in each["tried"]]
        assert sorted(tried[:2]) == [("a", "eu-1", "server_error"), ("b", "us-1", "server_error")]
        assert tried[2] == ("c", "eu-2", "ok")
        assert {each["key"] for each in row.pools[0]["candidates"]} == {"a", "b"}


async def test_a_share_is_sampled_without_the_caller_noticing(provider: RunningProvider) -> None:
    async with running_gateway(three(provider, explain_share=0.5)) as gateway:
        kept = keeping(gateway)
        for _ in range(40):
            assert "x-llm-proxy-explain" not in (await gateway.call("/v1/chat/completions", CHAT)).headers
        await gateway.settled(40)
        assert 8 <= len(kept) <= 32


async def test_who_may_not_see_it_has_nothing_kept(provider: RunningProvider) -> None:
    async with running_gateway(three(provider)) as gateway:
        kept = keeping(gateway)
        gateway.verifier.add("plain", scopes=("inference",))
        reply = await gateway.call("/v1/chat/completions", CHAT, headers=ASKED, token="plain")
        assert "usage:read" in reply.headers["x-llm-proxy-explain"]
        await gateway.settled(1)
        assert kept == []


@pytest.mark.parametrize("allowed", [None, "eu-*"])
async def test_the_row_says_where_each_attempt_went(provider: RunningProvider, allowed: str | None) -> None:
    provider.fault("a", DOWN)
    provider.fault("b", DOWN)
    headers = {} if allowed is None else {"x-llm-proxy-residency": allowed}
    async with running_gateway(three(provider, fallbacks=[{"pool": "other"}])) as gateway:
        assert (await gateway.call("/v1/chat/completions", CHAT, headers=headers)).status == 200
        row = await gateway.row()
        found = residency_of(row.attempts, row.region, row.regions, row.residency)
        assert found.kept
        if allowed is None:
            assert found.allowed is None
            assert sorted(map(str, found.attempts)) == ["eu-1", "eu-2", "us-1"]
        else:
            assert set(map(str, found.attempts)) == {"eu-1", "eu-2"}


async def test_one_attempt_needs_no_list(provider: RunningProvider) -> None:
    async with running_gateway(three(provider)) as gateway:
        await gateway.call("/v1/chat/completions", CHAT, headers={"x-llm-proxy-residency": "eu-*"})
        row = await gateway.row()
        assert (row.region, row.regions, row.residency) == ("eu-1", None, "eu-1")
