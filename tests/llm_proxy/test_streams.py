"""Streamed answers: pieces as they come, early ends, errors before and after the first content."""

from __future__ import annotations

import gc
import time

import pytest

from gateway.simulation.faults import Fault, FaultKind
from llm_proxy import (
    CompletionChunk,
    LLMProxyError,
    LoadBalancer,
    ProviderError,
    ProviderUnreachable,
    RateLimited,
    Timeout,
)
from tests.fakes.provider import RunningProvider
from tests.llm_proxy.conftest import HELLO, WEIGHTS

LONG = [{"role": "user", "content": "echo:" + " word" * 400}]


def break_all(provider: RunningProvider, fault: Fault) -> None:
    for name in WEIGHTS:
        provider.fault(name, fault)


def test_pieces_make_up_the_answer(balancer: LoadBalancer) -> None:
    whole = balancer.complete(model="gpt-4o", messages=HELLO)
    with balancer.stream(model="gpt-4o", messages=HELLO, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert len([chunk for chunk in chunks if chunk.text]) > 1
    assert chunks[-1].usage == stream.usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert stream.key in WEIGHTS
    assert [attempt.outcome for attempt in stream.attempts] == ["ok"]


def test_complete_with_stream_is_the_same(balancer: LoadBalancer) -> None:
    stream = balancer.complete(model="gpt-4o", messages=HELLO, stream=True)
    assert "".join(chunk.text for chunk in stream)
    assert list(stream) == [], "a stream can be read once"


def test_connections_are_used_again(balancer: LoadBalancer) -> None:
    for _ in range(5):
        list(balancer.stream(model="gpt-4o", messages=HELLO))
        list(balancer.messages(model="claude-sonnet-5", messages=HELLO, max_tokens=50, stream=True))
    stats = balancer.stats()
    assert (stats.open_connections, stats.idle_connections, stats.in_flight) == (1, 1, 0)
    assert sum(key.outcomes.get("ok", 0) for key in stats.keys) == 10


@pytest.mark.parametrize("end", ["close", "with", "drop"])
def test_an_early_end_frees_the_connection(balancer: LoadBalancer, provider: RunningProvider, end: str) -> None:
    break_all(provider, Fault(kind=FaultKind.SLOW, delay_s=5.0))
    stream = balancer.stream(model="gpt-4o", messages=LONG)
    assert next(stream) is not None
    assert balancer.stats().in_flight == 1
    if end == "close":
        stream.close()
    elif end == "with":
        with stream:
            pass
    else:
        del stream
        gc.collect()
    stats = balancer.stats()
    assert (stats.in_flight, stats.idle_connections) == (0, 0)
    assert sum(key.outcomes.get("abandoned", 0) for key in stats.keys) == 1
    until = time.monotonic() + 10
    while sum(provider.use(name).in_flight for name in WEIGHTS):
        assert time.monotonic() < until, "the provider did not notice that the caller has left"


def test_an_error_before_the_first_content_is_failed_over(balancer: LoadBalancer, provider: RunningProvider) -> None:
    for name in ("primary", "secondary"):
        provider.fault(name, Fault(kind=FaultKind.STREAM_ERROR, after=0))
    streams = [balancer.stream(model="gpt-4o", messages=HELLO) for _ in range(4)]
    assert all("".join(chunk.text for chunk in stream) for stream in streams)
    assert {stream.key for stream in streams} == {"tertiary"}


def test_an_error_after_the_first_content_is_raised(balancer: LoadBalancer, provider: RunningProvider) -> None:
    break_all(provider, Fault(kind=FaultKind.STREAM_ERROR, after=3))
    stream = balancer.stream(model="gpt-4o", messages=LONG)
    read: list[CompletionChunk] = []
    with pytest.raises(ProviderError, match="The server had an error") as caught:
        read.extend(stream)
    assert caught.value.status == 200
    assert balancer.stats().in_flight == 0
    assert list(stream) == []


def test_a_stream_that_is_cut(balancer: LoadBalancer, provider: RunningProvider) -> None:
    break_all(provider, Fault(kind=FaultKind.CUT, after=3))
    read: list[CompletionChunk] = []
    with pytest.raises(ProviderUnreachable) as caught:
        read.extend(balancer.stream(model="gpt-4o", messages=LONG))
    assert read
    assert caught.value.partial
    assert balancer.stats().in_flight == 0


def test_a_stream_that_stalls(balancer: LoadBalancer, provider: RunningProvider) -> None:
    break_all(provider, Fault(kind=FaultKind.STALL, after=3))
    with pytest.raises(Timeout):
        list(balancer.stream(model="gpt-4o", messages=LONG, timeout_s=0.3))


def test_errors_come_before_the_iteration(balancer: LoadBalancer, provider: RunningProvider) -> None:
    with pytest.raises(ProviderError, match="non-empty array"):
        balancer.stream(model="gpt-4o", messages=[])
    break_all(provider, Fault(kind=FaultKind.STATUS, status=500))
    with pytest.raises(LLMProxyError):
        balancer.stream(model="gpt-4o", messages=HELLO)
    assert balancer.stats().in_flight == 0


def test_a_429_that_is_final_says_when_to_come_back(balancer: LoadBalancer, provider: RunningProvider) -> None:
    break_all(provider, Fault(kind=FaultKind.STATUS, status=429, retry_after_s=120.0))
    with pytest.raises(RateLimited) as caught:
        balancer.stream(model="gpt-4o", messages=HELLO)
    assert caught.value.retry_after_s == pytest.approx(120, abs=10)


def test_anthropic_events(balancer: LoadBalancer) -> None:
    whole = balancer.messages(model="claude-sonnet-5", messages=HELLO, max_tokens=100)
    stream = balancer.messages(model="claude-sonnet-5", messages=HELLO, max_tokens=100, stream=True)
    events = list(stream)
    assert [events[0].type, events[-1].type] == ["message_start", "message_stop"]
    assert "".join(event.text for event in events) == whole.text
    assert stream.usage == whole.usage
