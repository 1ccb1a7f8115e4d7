"""The data path over real sockets against the simulated provider."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator

import pytest

from gateway.proxy.intake import Intake
from gateway.simulation.faults import Fault, FaultKind
from tests.fakes.provider import RunningProvider, provider_config, running_provider
from tests.proxy import harness
from tests.proxy.harness import key, pool, running_gateway, tenant
from tests.proxy.scripted import Exchange, scripted_upstream

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
MESSAGE = {"model": "claude-sonnet-5", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(autouse=True, params=["own server", "asgi"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds over both ways to the data path."""
    monkeypatch.setattr(harness, "OVER_ASGI", request.param == "asgi")


@pytest.fixture
def provider() -> Iterator[RunningProvider]:
    with running_provider(provider_config(a=10_000, b=10_000)) as running:
        yield running


async def test_a_chat_completion_is_answered_metered_and_labelled(provider: RunningProvider) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url, region="eu")))) as gateway:
        reply = await gateway.call("/v1/chat/completions", CHAT)
        assert reply.status == 200
        assert reply.json()["choices"][0]["message"]["content"]
        assert reply.headers["x-llm-proxy-pool"] == "main"
        assert reply.headers["x-llm-proxy-key"] == "a"
        assert reply.headers["x-llm-proxy-provider"] == "simulated"
        assert reply.headers["x-llm-proxy-region"] == "eu"
        assert reply.headers["x-llm-proxy-attempts"] == "1"
        assert reply.headers["x-request-id"] != reply.headers["x-llm-proxy-request-id"], "the provider's own id stays"
        assert not [name for name in reply.headers if "ratelimit" in name or "organization" in name]
        row = await gateway.row()
        usage = reply.json()["usage"]
        assert (row.input_tokens, row.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
        assert (row.status, row.outcome, row.attempts, row.streamed) == (200, "ok", 1, False)
        assert (row.operation, row.model, row.provider, row.region) == (
            "chat.completions",
            "gpt-4o-mini",
            "simulated",
            "eu",
        )
        assert row.request_id == reply.headers["x-llm-proxy-request-id"]
        assert row.usage_reported
        assert row.cost_usd_nanos
        assert row.first_byte_ms is not None
        assert row.first_byte_ms <= row.total_ms


async def test_streams_pass_unchanged_and_are_metered(provider: RunningProvider) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
        body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
        reply = await gateway.call("/v1/chat/completions", body)
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.body.endswith(b"data: [DONE]\n\n")
        events = [json.loads(line[6:]) for line in reply.body.splitlines() if line.startswith(b"data: {")]
        row = await gateway.row()
        assert row.streamed
        assert row.output_tokens == events[-1]["usage"]["completion_tokens"]


async def test_anthropic_callers_get_anthropic_answers(provider: RunningProvider) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
        headers = {"x-api-key": "good", "anthropic-version": "2023-06-01"}
        reply = await gateway.call("/v1/messages", MESSAGE, token=None, headers=headers)
        assert reply.status == 200, reply.body
        assert reply.json()["type"] == "message"
        streamed = await gateway.call("/v1/messages", {**MESSAGE, "stream": True}, token=None, headers=headers)
        assert b"event: message_stop" in streamed.body
        first, second = await gateway.settled(2)
        assert first.input_tokens == second.input_tokens > 0
        assert first.usage_reported
        assert second.usage_reported


async def test_credentials_never_cross(provider: RunningProvider) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
        sent = {
            "cookie": "c=1",
            "x-forwarded-for": "1.2.3.4",
            "connection": "x-title",
            "x-title": "t",
            "user-agent": "u",
        }
        raw = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: evil.example\r\nauthorization: Bearer good\r\n"
            "content-type: application/json\r\n" + "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        )
        body = json.dumps(CHAT)
        answer = await gateway.raw(f"{raw}content-length: {len(body)}\r\n\r\n{body}".encode())
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"sim-key" not in answer
        (seen,) = provider.log
        assert set(seen.headers) <= {
            "host", "authorization", "accept-encoding", "content-type", "user-agent", "content-length", "accept",
        }  # fmt: skip


async def test_one_key_limited_and_one_dead_are_not_seen_by_the_caller(provider: RunningProvider) -> None:
    provider.fault("a", Fault(kind=FaultKind.STATUS, status=429, retry_after_s=1))
    keys = (
        key("a", provider.base_url),
        key("dead", "http://127.0.0.1:1"),
        key("b", provider.base_url),
    )
    async with running_gateway(tenant(pool("main", *keys))) as gateway:
        for _ in range(60):
            reply = await gateway.call("/v1/chat/completions", CHAT)
            assert reply.status == 200, reply.body
            assert reply.headers["x-llm-proxy-key"] == "b"
        rows = await gateway.settled(60)
        assert all(row.status == 200 and row.outcome == "ok" for row in rows)


async def test_a_provider_s_own_error_reaches_the_caller_unchanged(provider: RunningProvider) -> None:
    async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
        reply = await gateway.call("/v1/chat/completions", {**CHAT, "model": "no-such-model"})
        assert reply.status == 404
        assert reply.json()["error"]["code"] == "model_not_found"
        row = await gateway.row()
        assert (row.status, row.outcome) == (404, "client_error")
        assert row.output_tokens == 0


async def test_a_revoked_key_is_taken_out_and_not_the_callers_fault(provider: RunningProvider) -> None:
    provider.revoke("a")
    async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
        reply = await gateway.call("/v1/chat/completions", CHAT)
        assert reply.status == 503
        assert reply.json()["error"]["code"] == "no_usable_key"
        assert b"sim-key" not in reply.body
    async with running_gateway(
        tenant(pool("main", key("a", provider.base_url), key("b", provider.base_url)))
    ) as gateway:
        for _ in range(6):
            assert (await gateway.call("/v1/chat/completions", CHAT)).status == 200


async def test_aliases_and_model_maps_rename_only_the_model(provider: RunningProvider) -> None:
    mapped = key("a", provider.base_url, models=("gpt-4o",), model_map={"gpt-4o": "gpt-4o-mini"})
    async with running_gateway(tenant(pool("main", mapped, settings={"model_aliases": {"fast": "gpt-4o"}}))) as gateway:
        reply = await gateway.call("/v1/chat/completions", {**CHAT, "model": "fast"})
        assert reply.json()["model"] == "gpt-4o-mini"
        row = await gateway.row()
        assert (row.model, row.served_model) == ("fast", "gpt-4o-mini")


async def test_an_azure_path_names_the_model_where_the_body_does_not(provider: RunningProvider) -> None:
    mapped = key("a", provider.base_url, models=("gpt-4o",), model_map={"gpt-4o": "gpt-4o-mini"})
    path = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"
    async with running_gateway(tenant(pool("main", mapped))) as gateway:
        reply = await gateway.call(path, {"messages": CHAT["messages"]}, token=None, headers={"api-key": "good"})
        assert reply.json()["model"] == "gpt-4o-mini"
        row = await gateway.row()
        assert (row.model, row.served_model) == ("gpt-4o", "gpt-4o-mini")
        named = await gateway.call(path.replace("gpt-4o", "other"), {**CHAT, "model": "gpt-4o"})
        assert named.status == 200, "a body that names a model goes before the path"
        spelt = await gateway.call(path, b'{"Model":"x","messages":[]}')
        assert (spelt.status, spelt.json()["error"]["code"]) == (400, "invalid_body")


async def test_pools_by_path_header_default_and_model(provider: RunningProvider) -> None:
    pools = (
        pool("b-default", key("a", provider.base_url, models=("gpt-*",)), is_default=True),
        pool("a-first", key("b", provider.base_url, models=("gpt-*", "claude-*"))),
    )
    async with running_gateway(tenant(*pools)) as gateway:
        assert (await gateway.call("/v1/chat/completions", CHAT)).headers["x-llm-proxy-pool"] == "b-default"
        path = await gateway.call("/pools/a-first/v1/chat/completions", CHAT)
        assert path.headers["x-llm-proxy-pool"] == "a-first"
        header = await gateway.call("/v1/chat/completions", CHAT, headers={"x-llm-proxy-pool": "a-first"})
        assert header.headers["x-llm-proxy-pool"] == "a-first"
        by_model = await gateway.call("/v1/messages", MESSAGE)
        assert by_model.headers["x-llm-proxy-pool"] == "a-first"


@pytest.mark.parametrize("operation", ["embeddings", "completions", "responses", "moderations", "audio/speech"])
async def test_other_operations(provider: RunningProvider, operation: str) -> None:
    bodies = {
        "embeddings": {"model": "text-embedding-3-small", "input": "x"},
        "completions": {"model": "gpt-4o", "prompt": "x"},
        "responses": {"model": "gpt-4o", "input": "x"},
        "moderations": {"model": "omni-moderation-latest", "input": "x"},
        "audio/speech": {"model": "tts-1", "input": "x", "voice": "alloy"},
    }
    async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
        reply = await gateway.call(f"/v1/{operation}", bodies[operation])
        assert reply.status == 200, reply.body
        row = await gateway.row()
        assert row.operation == operation.replace("/", ".")


async def test_the_model_list_is_the_gateways_own(provider: RunningProvider) -> None:
    keyed = key("a", provider.base_url, models=("gpt-4o", "gpt-4*"))
    snapshot = tenant(pool("main", keyed, settings={"model_aliases": {"fast": "gpt-4o", "lost": "other"}}))
    async with running_gateway(snapshot) as gateway:
        listed = (await gateway.call("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["fast", "gpt-4o"]
        anthropic = (await gateway.call("/v1/models", headers={"anthropic-version": "2023-06-01"})).json()
        assert anthropic["first_id"] == "fast"
        assert (await gateway.call("/v1/models/gpt-4o")).json()["object"] == "model"
        assert (await gateway.call("/v1/models/nope")).status == 404
        assert provider.log == ()


async def test_what_was_sent_is_not_kept_while_an_answer_streams() -> None:
    release = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head_of_stream()
        await exchange.chunk(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n')
        await release.wait()
        await exchange.send(b"0\r\n\r\n")

    async with (
        scripted_upstream(script) as upstream,
        running_gateway(tenant(pool("m", key("a", upstream.base_url)))) as g,
    ):
        prompt = "a prompt that nobody else has " * 1000
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": prompt}]}
        stream = await g.open("/v1/chat/completions", body)
        assert await stream.read()
        held = [each for each in gc.get_objects() if isinstance(each, Intake) and prompt.encode() in each.held]
        assert not held
        release.set()
        assert await stream.read() == b""
