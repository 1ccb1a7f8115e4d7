"""Rates, budgets and explanations over the data path."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.policy.allowance import InMemoryAllowances
from gateway.policy.rates import RateLog
from tests.fakes.provider import RunningProvider, provider_config, running_provider
from tests.proxy.harness import Gateway, Reply, key, pool, running_gateway, tenant

CHAT = {"model": "gpt-4o-mini", "max_tokens": 20, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def provider() -> Iterator[RunningProvider]:
    with running_provider(provider_config(a=10_000, b=10_000)) as running:
        yield running


async def ask(gateway: Gateway, token: str, body: Any = CHAT, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await gateway.call("/v1/chat/completions", body, token=token, headers=named)


def message(reply: Reply) -> str:
    return str(reply.json()["error"]["message"])


@pytest.mark.parametrize(
    ("detail", "served", "words"),
    [
        ({"rpm": 2}, 2, "limit of 2 requests a minute (authorization_details.rpm)"),
        ({"tpm": 70}, 1, "limit of 70 tokens a minute (authorization_details.tpm)"),
        (
            {"budget_usd": 0.00003, "budget_period": "day"},
            1,
            "budget of 3e-05 US dollars a day (authorization_details.budget_usd)",
        ),
    ],
)
async def test_a_limit_refuses_by_name(
    provider: RunningProvider, detail: dict[str, Any], served: int, words: str
) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
        gateway.verifier.add("narrow", details=({"type": "llm_proxy", **detail},))
        for _ in range(served):
            assert (await ask(gateway, "narrow")).status == 200
        refused = await ask(gateway, "narrow")
        while refused.status == 200:  # what was reserved is more than what was used
            refused = await ask(gateway, "narrow")
        assert refused.status == 429
        assert refused.json()["error"]["code"] == "token_limit_reached"
        assert words in message(refused)
        assert int(refused.headers["retry-after"]) > 0
        assert gateway.usage.rows[-1].outcome == "token_limit_reached"
        assert (await ask(gateway, "good")).status == 200, "other tokens are not concerned"


async def test_many_at_once_get_no_more_than_the_limit(provider: RunningProvider) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
        gateway.verifier.add("narrow", details=({"type": "llm_proxy", "rpm": 5},))
        replies = await asyncio.gather(*(ask(gateway, "narrow") for _ in range(20)))
        assert sorted(reply.status for reply in replies) == [200] * 5 + [429] * 15


async def test_a_request_that_may_fit_waits_for_news_of_the_other_processes(provider: RunningProvider) -> None:
    rates = RateLog()
    rates.exchanged(2)
    allowances = InMemoryAllowances(rates=rates)
    async with running_gateway(tenant(pool("main", key("a", provider.base_url))), allowances=allowances) as gateway:
        gateway.verifier.add("narrow", details=({"type": "llm_proxy", "rpm": 3},))
        assert (await ask(gateway, "narrow")).status == 200
        waiting = asyncio.create_task(ask(gateway, "narrow"))
        for _ in range(2):  # it was refused, and asks again
            rates.hand_out()
            async with asyncio.timeout(10):
                while not _is_busy(rates):
                    await asyncio.sleep(0.01)
        assert not waiting.done()
        rates.exchanged(2)
        assert (await waiting).status == 200
        refused = await ask(gateway, "narrow")
        assert (refused.status, refused.headers["retry-after"]) == (429, "1"), "no news came"
        assert "authorization_details.rpm" in message(refused)


def _is_busy(rates: RateLog) -> bool:
    return rates.is_busy


async def test_children_spend_what_their_parent_may(provider: RunningProvider) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
        shared = {"type": "llm_proxy", "limits": [{"bucket": "parent:0", "rpm": 3}]}
        for name in ("one", "two"):
            gateway.verifier.add(name, details=(shared,))
        replies = [await ask(gateway, name) for name in ("one", "two", "one", "two")]
        assert [reply.status for reply in replies] == [200, 200, 200, 429]
        assert "shares with the tokens it comes from" in message(replies[-1])


async def test_a_further_object_may_serve_what_a_limit_of_the_first_refuses(provider: RunningProvider) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
        first = {"type": "llm_proxy", "limits": [{"bucket": "t:0", "rpm": 1}]}
        second = {"type": "llm_proxy", "models": ["gpt-*"], "limits": [{"bucket": "t:1", "rpm": 1}]}
        gateway.verifier.add("two", details=(first, second))
        assert [(await ask(gateway, "two")).status for _ in range(3)] == [200, 200, 429]


async def test_what_reached_no_provider_counts_for_nothing() -> None:
    async with running_gateway(tenant(pool("main"))) as gateway:
        gateway.verifier.add("narrow", details=({"type": "llm_proxy", "rpm": 1},))
        for _ in range(3):
            assert (await ask(gateway, "narrow")).status == 503


async def test_a_budget_cannot_be_passed_by_a_model_without_a_price(provider: RunningProvider) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
        gateway.verifier.add("narrow", details=({"type": "llm_proxy", "budget_usd": 5, "budget_period": "total"},))
        refused = await ask(gateway, "narrow", {**CHAT, "model": "my-own"})
        assert refused.status == 429
        assert "no price is known for 'my-own'" in message(refused)
        assert "retry-after" not in refused.headers
        assert (await ask(gateway, "narrow")).status == 200


async def test_a_request_can_be_explained(provider: RunningProvider) -> None:
    keys = key("a", provider.base_url), key("b", provider.base_url, models=("other",)), key("w", "http://127.0.0.1:9")
    async with running_gateway(tenant(pool("main", *keys, strategy="least_connections"))) as gateway:
        gateway.verifier.add("auditor", scopes=("inference", "usage:read"))
        reply = await ask(gateway, "auditor", x_llm_proxy_explain="true")
        why = json.loads(reply.headers["x-llm-proxy-explain"])
        assert (why["pool"], why["model"], why["strategy"]) == ("main", "gpt-4o-mini", "least_connections")
        assert {each["key"] for each in why["candidates"]} == {"a", "w"}
        assert why["tried"][-1]["key"] == "a"
        assert why["tried"][-1]["status"] == 200
        assert "x-llm-proxy-explain" not in (await ask(gateway, "auditor")).headers


async def test_a_refusal_can_be_explained(provider: RunningProvider) -> None:
    settings = {"retry": {"max_pause_s": 0}}
    full = pool("main", key("a", provider.base_url), settings=settings, limits={"rpm": 1})
    async with running_gateway(tenant(full)) as gateway:
        gateway.verifier.add("auditor", scopes=("inference", "usage:read"))
        await ask(gateway, "good")
        refused = await ask(gateway, "auditor", x_llm_proxy_explain="1")
        assert refused.status == 429
        (candidate,) = json.loads(refused.headers["x-llm-proxy-explain"])["candidates"]
        assert candidate["excluded"] == "limited"
        assert candidate["until_s"] > 0


async def test_explanations_are_for_those_who_may_know_the_keys(provider: RunningProvider) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
        reply = await ask(gateway, "good", x_llm_proxy_explain="true")
        assert reply.status == 200
        assert "usage:read" in json.loads(reply.headers["x-llm-proxy-explain"])["refused"]


async def test_an_explanation_of_many_keys_fits_a_header() -> None:
    keys = [key(f"k{number:05}", "http://127.0.0.1:9") for number in range(200)]
    async with running_gateway(tenant(pool("main", *keys))) as gateway:
        gateway.verifier.add("auditor", scopes=("inference", "usage:read"))
        reply = await ask(gateway, "auditor", x_llm_proxy_explain="true")
        value = reply.headers["x-llm-proxy-explain"]
        assert len(value) <= 4096
        why = json.loads(value)
        assert len(why["candidates"]) + why["more"] == 200
