"""The official SDKs, and plain httpx and httpx2, over the balancer."""

from __future__ import annotations

import io
import sys
from collections import Counter

import anthropic
import httpx
import httpx2
import openai
import pytest

from gateway.simulation.faults import Fault, FaultKind
from llm_proxy import AsyncLoadBalancer, InvalidRequest, LoadBalancer, MissingPackage
from tests.fakes.provider import RunningProvider
from tests.llm_proxy.conftest import WEIGHTS, document

HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hello!"}]
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello!"}]}


def test_openai(balancer: LoadBalancer, provider: RunningProvider) -> None:
    client = balancer.openai_client()
    keys: Counter[str] = Counter()
    for _ in range(10):
        raw = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=HELLO)
        keys[raw.headers["x-llm-proxy-key"]] += 1
        assert raw.parse().choices[0].message.content
    assert keys == {"primary": 5, "secondary": 3, "tertiary": 2}
    assert not {header for seen in provider.log for header in seen.headers} & {"cookie", "openai-organization"}


def test_openai_streams(balancer: LoadBalancer) -> None:
    client = balancer.openai_client()
    for _ in range(3):
        chunks = list(client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True))
        assert len(chunks) > 2
    stats = balancer.stats()
    assert (stats.in_flight, stats.open_connections) == (0, 1)
    assert sum(key.outcomes.get("ok", 0) for key in stats.keys) == 3, "the SDK stops at [DONE]: that is no early end"


def test_openai_stream_that_is_left_early(balancer: LoadBalancer, provider: RunningProvider) -> None:
    for name in WEIGHTS:
        provider.fault(name, Fault(kind=FaultKind.SLOW, delay_s=5.0))
    client = balancer.openai_client()
    with client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True) as stream:
        next(iter(stream))
    assert balancer.stats().in_flight == 0


def test_openai_other_operations(balancer: LoadBalancer) -> None:
    client = balancer.openai_client()
    assert client.responses.create(model="gpt-4o", input="Hello!").output_text
    assert len(client.embeddings.create(model="text-embedding-3-small", input=["a", "b"]).data) == 2
    assert client.audio.transcriptions.create(model="whisper-1", file=("a.wav", io.BytesIO(b"x" * 300_000))).text
    assert client.models.list().data
    with pytest.raises(openai.NotFoundError, match="belongs to one account"):
        client.files.list()


def test_openai_failover(balancer: LoadBalancer, provider: RunningProvider) -> None:
    provider.revoke("primary")
    provider.fault("secondary", Fault(kind=FaultKind.STATUS, status=503))
    client = balancer.openai_client()
    for _ in range(10):
        assert client.chat.completions.create(model="gpt-4o", messages=HELLO).choices


def test_openai_raises_its_own_errors(balancer: LoadBalancer, provider: RunningProvider) -> None:
    client = balancer.openai_client()
    with pytest.raises(openai.BadRequestError, match="non-empty array"):
        client.chat.completions.create(model="gpt-4o", messages=[])
    for name in WEIGHTS:
        provider.fault(name, Fault(kind=FaultKind.HANG))
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="gpt-4o", messages=HELLO, timeout=0.1)
    for name in WEIGHTS:
        provider.fault(name, Fault(kind=FaultKind.RESET))
    with pytest.raises((openai.APIConnectionError, openai.InternalServerError)):
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    for name in WEIGHTS:
        provider.fault(name)
        provider.revoke(name)
    with pytest.raises(openai.OpenAIError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert "sim-key" not in str(caught.value)
    balancer.close()
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model="gpt-4o", messages=HELLO)


def test_what_the_balancer_refuses_reads_as_the_apis_errors(provider: RunningProvider) -> None:
    with LoadBalancer(document(provider, models=["gpt-*"])) as balancer:
        with pytest.raises(openai.NotFoundError, match="No key of 'main' serves 'llama'"):
            balancer.openai_client().chat.completions.create(model="llama", messages=HELLO)
        assert balancer.openai_client().models.list().data, "asked of any key"
        with pytest.raises(anthropic.NotFoundError, match="No key of 'main' serves 'claude-x'"):
            balancer.anthropic_client().messages.create(
                model="claude-x", max_tokens=5, messages=[{"role": "user", "content": "Hello!"}]
            )
    with LoadBalancer(document(provider)) as balancer:
        for name in WEIGHTS:
            provider.revoke(name)
        with pytest.raises(openai.AuthenticationError, match="accepted by its provider"):
            balancer.openai_client().chat.completions.create(model="gpt-4o", messages=HELLO)


async def test_async_openai(provider: RunningProvider) -> None:
    async with AsyncLoadBalancer(document(provider)) as balancer, balancer.openai_client() as client:
        answer = await client.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert answer.choices[0].message.content
        stream = await client.chat.completions.create(
            model="gpt-4o", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None
        early = await client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)
        await anext(early)
        await early.close()
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="gpt-4o", messages=[])
        stats = balancer.stats()
    assert stats.in_flight == 0


def test_anthropic(balancer: LoadBalancer) -> None:
    client = balancer.anthropic_client()
    said: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Hello!"}]
    whole = client.messages.create(model="claude-sonnet-5", max_tokens=50, messages=said)
    with client.messages.stream(model="claude-sonnet-5", max_tokens=50, messages=said) as stream:
        text = stream.get_final_text()
    assert whole.content[0].type == "text"
    assert whole.content[0].text == text
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model="claude-sonnet-5", max_tokens=50, messages=[])
    assert balancer.stats().in_flight == 0


async def test_async_anthropic(provider: RunningProvider) -> None:
    async with AsyncLoadBalancer(document(provider)) as balancer:
        answer = await balancer.anthropic_client().messages.create(
            model="claude-sonnet-5", max_tokens=50, messages=[{"role": "user", "content": "Hello!"}]
        )
    assert answer.content


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
async def test_plain_clients(provider: RunningProvider, library: str) -> None:
    url = "https://anything.example/v1/chat/completions"
    with LoadBalancer(document(provider)) as balancer:
        if library == "httpx":
            with httpx.Client(transport=balancer.transport()) as client:
                assert client.post(url, json=CHAT).json()["choices"]
        else:
            with httpx2.Client(transport=balancer.transport("httpx2")) as client2:
                assert client2.post(url, json=CHAT).json()["choices"]
    async with AsyncLoadBalancer(document(provider)) as twin:
        if library == "httpx":
            async with httpx.AsyncClient(transport=twin.transport()) as aclient:
                assert (await aclient.post(url, json=CHAT)).json()["choices"]
        else:
            async with httpx2.AsyncClient(transport=twin.transport("httpx2")) as aclient2:
                assert (await aclient2.post(url, json=CHAT)).json()["choices"]


def test_arguments_that_are_the_balancers(balancer: LoadBalancer) -> None:
    with pytest.raises(InvalidRequest, match="api_key is the balancer's"):
        balancer.openai_client(api_key="sk-0123456789")


def test_a_missing_sdk_is_named(balancer: LoadBalancer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "anthropic", raising=False)

    class Absent:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "anthropic":
                raise ModuleNotFoundError("No module named 'anthropic'", name="anthropic")

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(MissingPackage, match="pip install anthropic"):
        balancer.anthropic_client()
