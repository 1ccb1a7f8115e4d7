"""Down the ladder: what is asked next, by cause; what never changes on the way; what the caller is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.simulation.faults import Fault, FaultKind
from tests.fakes.provider import RunningProvider, provider_config, running_provider
from tests.proxy.harness import Gateway, key, pool, running_gateway, tenant
from tests.proxy.scripted import Exchange, scripted_upstream

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
DOWN = Fault(kind=FaultKind.STATUS, status=503)
FULL = Fault(kind=FaultKind.STATUS, status=429, retry_after_s=60.0)
ONCE = {"retry": {"max_attempts": 1, "max_pause_s": 0}}


@pytest.fixture
def provider() -> Iterator[RunningProvider]:
    with running_provider(provider_config(a=10_000, b=10_000, c=10_000)) as running:
        yield running


def ladder(provider: RunningProvider, *rungs: dict[str, Any], **settings: Any) -> Any:
    return tenant(
        pool("main", key("a", provider.base_url, region="eu-1"), is_default=True,
             settings={**ONCE, "fallbacks": list(rungs), **settings}),
        pool("other", key("b", provider.base_url, region="us-1"), settings=ONCE),
        pool("third", key("c", provider.base_url, region="eu-2"), settings=ONCE),
    )  # fmt: skip


@pytest.mark.parametrize(("fault", "cause"), [(DOWN, "outage"), (FULL, "capacity")])
async def test_the_next_pool_serves_and_is_named(provider: RunningProvider, fault: Fault, cause: str) -> None:
    provider.fault("a", fault)
    async with running_gateway(ladder(provider, {"pool": "other", "models": {"gpt-4o": "claude-sonnet-5"}})) as gateway:
        reply = await gateway.call("/v1/chat/completions", CHAT)
        assert reply.status == 200
        assert reply.headers["x-llm-proxy-fallback"] == f"pool=other; model=claude-sonnet-5; cause={cause}"
        assert (reply.headers["x-llm-proxy-pool"], reply.headers["x-llm-proxy-attempts"]) == ("other", "2")
        assert reply.json()["model"] == "claude-sonnet-5"
        row = await gateway.row()
        other = next(each for each in gateway.directory if each).pools["other"]
        assert (row.pool_id, row.model, row.served_model) == (other.pool_id, "gpt-4o", "claude-sonnet-5")


async def test_what_the_pool_serves_goes_nowhere_else(provider: RunningProvider) -> None:
    async with running_gateway(ladder(provider, {"pool": "other"})) as gateway:
        reply = await gateway.call("/v1/chat/completions", CHAT)
        assert reply.headers["x-llm-proxy-pool"] == "main"
        assert "x-llm-proxy-fallback" not in reply.headers


async def test_a_full_pool_is_left_at_once_for_a_free_one(provider: RunningProvider) -> None:
    snapshot = ladder(provider, {"pool": "other"}, retry={"max_pause_s": 30})
    full = tenant(pool("main", key("a", provider.base_url), settings=snapshot.pools[0].settings, limits={"rpm": 1},
                       is_default=True), *snapshot.pools[1:])  # fmt: skip
    async with running_gateway(full) as gateway:
        served = [(await gateway.call("/v1/chat/completions", CHAT)).headers["x-llm-proxy-pool"] for _ in range(3)]
        assert served == ["main", "other", "other"]


async def test_all_rungs_fail_and_the_last_one_is_told(provider: RunningProvider) -> None:
    for name in "abc":
        provider.fault(name, DOWN)
    async with running_gateway(ladder(provider, {"pool": "other"}, {"pool": "third"})) as gateway:
        reply = await gateway.call("/v1/chat/completions", CHAT)
        assert reply.status == 503
        assert reply.headers["x-llm-proxy-fallback"] == "pool=third; model=gpt-4o; cause=outage"
        assert (await gateway.row()).attempts == 3


async def test_every_key_of_a_pool_disabled_is_an_outage(provider: RunningProvider) -> None:
    snapshot = ladder(provider, {"pool": "other"})
    empty = tenant(pool("main", is_default=True, settings=snapshot.pools[0].settings), *snapshot.pools[1:])
    async with running_gateway(empty) as gateway:
        reply = await gateway.call("/pools/main/v1/chat/completions", CHAT)
        assert reply.headers["x-llm-proxy-fallback"] == "pool=other; model=gpt-4o; cause=outage"


async def _refuse(exchange: Exchange, body: dict[str, Any], status: int = 400) -> None:
    await _answer(exchange, {"error": body}, status)


async def _answer(exchange: Exchange, body: dict[str, Any], status: int = 200) -> None:
    raw = json.dumps(body).encode()
    await exchange.send(
        b"HTTP/1.1 %d x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(raw), raw)
    )


@pytest.mark.parametrize(
    ("code", "cause"), [("context_length_exceeded", "context_length"), ("content_filter", "content_policy")]
)
async def test_causes_that_the_provider_names(provider: RunningProvider, code: str, cause: str) -> None:
    async def script(exchange: Exchange) -> None:
        await _refuse(exchange, {"code": code, "message": "no"})

    async with scripted_upstream(script) as upstream:
        for on, served in ((["outage"], "main"), ([cause], "other")):
            settings = {"fallbacks": [{"pool": "other", "on": on}]}
            snapshot = tenant(
                pool("main", key("a", upstream.base_url), settings=settings, is_default=True),
                pool("other", key("b", provider.base_url)),
            )
            async with running_gateway(snapshot) as gateway:
                reply = await gateway.call("/v1/chat/completions", CHAT)
                assert (reply.status, reply.headers["x-llm-proxy-pool"]) == (200 if served == "other" else 400, served)
                assert served == "other" or reply.json()["error"]["code"] == code, "the body is whole"


FILTERED = {"choices": [{"index": 0, "finish_reason": "content_filter", "message": {"content": "I"}}]}


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_answer_that_the_filter_ended_before_anybody_saw_it_falls_back(
    provider: RunningProvider, is_stream: bool
) -> None:
    async def script(exchange: Exchange) -> None:
        if is_stream:
            await exchange.head_of_stream()
            await exchange.chunk(b'data: {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}\n\n')
            last = b'{"choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter"}]}'
            await exchange.chunk(b"data: %b\n\n" % last)
            await exchange.chunk(b"data: [DONE]\n\n")
            await exchange.chunk(b"")
        else:
            await _answer(exchange, FILTERED)

    async with scripted_upstream(script) as upstream:
        for on, served in ((["outage"], "main"), (["content_policy"], "other")):
            settings = {"fallbacks": [{"pool": "other", "on": on}]}
            snapshot = tenant(
                pool("main", key("a", upstream.base_url), settings=settings, is_default=True),
                pool("other", key("b", provider.base_url)),
            )
            async with running_gateway(snapshot) as gateway:
                reply = await gateway.call("/v1/chat/completions", {**CHAT, "stream": is_stream})
                assert (reply.status, reply.headers["x-llm-proxy-pool"]) == (200, served)
                assert (b"content_filter" in reply.body) == (served == "main"), "whole where nothing stands in"
                assert reply.headers.get("x-llm-proxy-fallback", "none").endswith(("cause=content_policy", "none"))
                await gateway.settled(1)
                assert len(gateway.usage.rows) == 1
                runtime = next(each for each in gateway.directory if each)
                assert [each.balancer.in_flight for each in runtime.pools.values()] == [0, 0]


async def test_content_that_was_seen_is_not_taken_back(provider: RunningProvider) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head_of_stream()
        await exchange.chunk(b'data: {"choices": [{"index": 0, "delta": {"content": "I"}}]}\n\n')
        await exchange.chunk(b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter"}]}\n\n')
        await exchange.chunk(b"")

    async with scripted_upstream(script) as upstream:
        settings = {"fallbacks": [{"pool": "other", "on": ["content_policy"]}]}
        snapshot = tenant(
            pool("main", key("a", upstream.base_url), settings=settings, is_default=True),
            pool("other", key("b", provider.base_url)),
        )
        async with running_gateway(snapshot) as gateway:
            reply = await gateway.call("/v1/chat/completions", {**CHAT, "stream": True})
            assert reply.headers["x-llm-proxy-pool"] == "main"
            assert b"content_filter" in reply.body


async def test_an_error_event_at_the_beginning_of_a_stream_falls_back(provider: RunningProvider) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head_of_stream()
        await exchange.chunk(b'data: {"error": {"code": "context_length_exceeded", "message": "no"}}\n\n')
        await exchange.chunk(b"")

    async with scripted_upstream(script) as upstream:
        settings = {"fallbacks": [{"pool": "other", "on": ["context_length"]}]}
        snapshot = tenant(
            pool("main", key("a", upstream.base_url), settings=settings, is_default=True),
            pool("other", key("b", provider.base_url)),
        )
        async with running_gateway(snapshot) as gateway:
            reply = await gateway.call("/v1/chat/completions", {**CHAT, "stream": True})
            assert reply.headers["x-llm-proxy-fallback"] == "pool=other; model=gpt-4o; cause=context_length"
            assert b"[DONE]" in reply.body


NARROW: list[tuple[dict[str, Any], dict[str, str], str | None]] = [
    ({}, {}, "other"),
    ({"models": ["gpt-4o"]}, {}, "other"),
    ({"pools": ["main", "third"]}, {}, "third"),
    ({"regions": ["eu-*"]}, {}, "third"),
    ({}, {"x-llm-proxy-residency": "eu-*"}, "third"),
    ({"pools": ["main"]}, {}, None),
    ({"regions": ["eu-1"]}, {}, None),
]


@pytest.mark.parametrize(("detail", "headers", "served"), NARROW)
async def test_no_rung_goes_beyond_token_and_residency(
    provider: RunningProvider, detail: dict[str, Any], headers: dict[str, str], served: str | None
) -> None:
    provider.fault("a", DOWN)
    async with running_gateway(ladder(provider, {"pool": "other"}, {"pool": "third"}), tokens=False) as gateway:
        gateway.verifier.add("good", details=({"type": "llm_proxy", **detail},) if detail else ())
        reply = await gateway.call("/v1/chat/completions", CHAT, headers=headers)
        if served is None:
            assert reply.status == 503
            assert "x-llm-proxy-fallback" not in reply.headers
        else:
            assert reply.headers["x-llm-proxy-pool"] == served


async def test_a_token_for_one_model_does_not_reach_the_one_that_stands_in(provider: RunningProvider) -> None:
    provider.fault("a", DOWN)
    async with running_gateway(ladder(provider, {"model": "gpt-4.1"}, {"pool": "other", "model": "gpt-5"})) as gateway:
        gateway.verifier.add("narrow", details=({"type": "llm_proxy", "models": ["gpt-4o", "gpt-5"]},))
        reply = await gateway.call("/v1/chat/completions", CHAT, token="narrow")
        assert reply.headers["x-llm-proxy-fallback"] == "pool=other; model=gpt-5; cause=outage"


async def test_limits_of_the_token_count_a_request_once(provider: RunningProvider) -> None:
    provider.fault("a", DOWN)
    async with running_gateway(ladder(provider, {"pool": "other"})) as gateway:
        gateway.verifier.add("slow", details=({"type": "llm_proxy", "rpm": 1},))
        assert (await gateway.call("/v1/chat/completions", CHAT, token="slow")).status == 200
        assert (await gateway.call("/v1/chat/completions", CHAT, token="slow")).status == 429


async def test_an_upload_that_was_sent_cannot_be_sent_again(provider: RunningProvider) -> None:
    async with running_gateway(ladder(provider, {"pool": "other"})) as gateway:
        big = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--x\r\n' + (
            b'content-disposition: form-data; name="file"; filename="f"\r\n\r\n' + b"a" * 600_000 + b"\r\n--x--\r\n"
        )
        provider.fault("a", DOWN)
        reply = await _upload(gateway, big)
        assert reply.headers["x-llm-proxy-pool"] == "main"
        assert reply.status == 503


async def _upload(gateway: Gateway, body: bytes) -> Any:
    return await gateway.call(
        "/v1/audio/transcriptions", body, headers={"content-type": "multipart/form-data; boundary=x"}
    )


async def test_a_pool_that_does_not_speak_the_dialect_is_passed_over(provider: RunningProvider) -> None:
    provider.fault("a", DOWN)
    settings = {**ONCE, "fallbacks": [{"pool": "gemini"}, {"pool": "third"}, {"pool": "gone"}]}
    snapshot = tenant(
        pool("main", key("a", provider.base_url), settings=settings, is_default=True),
        pool("gemini", key("b", provider.base_url, provider="anthropic", models=("claude-*",))),
        pool("third", key("c", provider.base_url)),
    )
    async with running_gateway(snapshot) as gateway:
        reply = await gateway.call("/v1/chat/completions", CHAT)
        assert reply.headers["x-llm-proxy-pool"] == "third"


async def test_an_alias_is_the_other_pool_s_own_where_it_has_one(provider: RunningProvider) -> None:
    provider.fault("a", DOWN)
    settings = {**ONCE, "fallbacks": [{"pool": "other"}], "model_aliases": {"smart": "gpt-4o"}}
    snapshot = tenant(
        pool("main", key("a", provider.base_url), settings=settings, is_default=True),
        pool("other", key("b", provider.base_url), settings={"model_aliases": {"smart": "claude-sonnet-5"}}),
    )
    async with running_gateway(snapshot) as gateway:
        reply = await gateway.call("/v1/chat/completions", {**CHAT, "model": "smart"})
        assert reply.json()["model"] == "claude-sonnet-5"


async def test_a_provider_that_is_down_is_not_asked_by_every_request(provider: RunningProvider) -> None:
    settings = {"retry": {"max_attempts": 1}, "fallbacks": [{"pool": "other"}]}
    snapshot = tenant(
        pool("main", key("a", "http://127.0.0.1:1"), settings=settings, is_default=True),
        pool("other", key("b", provider.base_url)),
    )
    async with running_gateway(snapshot) as gateway:
        replies = [await gateway.call("/v1/chat/completions", CHAT) for _ in range(4)]
        assert {reply.headers["x-llm-proxy-fallback"] for reply in replies} == {
            "pool=other; model=gpt-4o; cause=outage"
        }
        assert [reply.headers["x-llm-proxy-attempts"] for reply in replies] == ["2", "2", "2", "1"]


async def test_the_filter_is_not_waited_for_past_the_callers_deadline() -> None:
    async def stalls(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n")
        await exchange.send(b'{"choices": [')
        await exchange.closed_by_gateway()

    async with scripted_upstream(stalls) as upstream:
        settings = {"fallbacks": [{"pool": "other", "on": ["content_policy"]}]}
        snapshot = tenant(
            pool("main", key("a", upstream.base_url), is_default=True, settings=settings),
            pool("other", key("b", upstream.base_url)),
        )
        async with running_gateway(snapshot) as gateway, asyncio.timeout(4):
            answer = await gateway.open("/v1/chat/completions", CHAT, headers={"x-llm-proxy-deadline": "0.5"})
            assert answer.status == 200, "it had begun"
            await answer.aclose()
