"""Models that stand in, and second keys for late answers, in-process."""

from __future__ import annotations

import httpx
import pytest

from gateway.balancing.hedging import LEAST_SAMPLES
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.steps import Attempt
from gateway.simulation.faults import Fault, FaultKind
from llm_proxy import AsyncLoadBalancer, ConfigurationError, LoadBalancer, Options, ProviderError, RateLimited
from llm_proxy.calls import http_call, json_call, with_model
from tests.fakes.provider import RunningProvider
from tests.llm_proxy.conftest import HELLO, WEIGHTS, document
from tests.proxy.scripted import Exchange, scripted_upstream

DOWN = Fault(kind=FaultKind.STATUS, status=503)
STAND_IN = Options(fallback_models={"gpt-4o": ["gpt-4o-mini", "gpt-4.1"]}, max_attempts=2, max_wait_s=5)


def apart(provider: RunningProvider) -> dict[str, object]:
    """Name keys of which each serves one model."""
    found = document(provider)
    for entry, model in zip(found["providers"], ("gpt-4o", "gpt-4o-mini", "gpt-4.1"), strict=True):
        entry["models"] = [model]
    return found


def test_a_model_stands_in_for_one_that_is_down(provider: RunningProvider) -> None:
    provider.fault("primary", DOWN)
    provider.fault("secondary", DOWN)
    with LoadBalancer(apart(provider), STAND_IN) as balancer:
        answer = balancer.complete(model="gpt-4o", messages=HELLO)
        assert (answer.model, answer.key, answer.served.fallback) == ("gpt-4.1", "tertiary", "gpt-4.1")
        assert {each.key for each in answer.attempts} == set(WEIGHTS)
        with balancer.stream(model="gpt-4o", messages=HELLO) as stream:
            assert "".join(chunk.text for chunk in stream)
        client = httpx.Client(transport=balancer.transport(), base_url="https://balanced.invalid")
        reply = client.post("/v1/chat/completions", json={"model": "gpt-4o", "messages": HELLO})
        assert reply.headers["x-llm-proxy-fallback"] == "model=gpt-4.1"
        assert balancer.stats().in_flight == 0


def test_the_model_that_was_asked_for_serves_when_it_can(provider: RunningProvider) -> None:
    with LoadBalancer(apart(provider), STAND_IN) as balancer:
        answer = balancer.complete(model="gpt-4o", messages=HELLO)
        assert (answer.model, answer.served.fallback) == ("gpt-4o", None)


def test_all_of_them_fail_and_the_last_error_is_raised(provider: RunningProvider) -> None:
    for name in WEIGHTS:
        provider.fault(name, DOWN)
    with LoadBalancer(apart(provider), STAND_IN) as balancer:
        with pytest.raises(ProviderError) as raised:
            balancer.complete(model="gpt-4o", messages=HELLO)
        assert raised.value.key == "tertiary"


def test_the_pool_file_may_name_models_that_stand_in(provider: RunningProvider) -> None:
    provider.fault("primary", DOWN)
    ladder = [{"models": {"gpt-4.1": "gpt-5"}}, {"model": "gpt-4o-mini", "on": ["outage"]}]
    with LoadBalancer({**apart(provider), "fallbacks": ladder}, Options(max_attempts=1)) as balancer:
        assert balancer.complete(model="gpt-4o", messages=HELLO).served.fallback == "gpt-4o-mini"
    for rung, place in (
        ({"pool": "azure"}, "/fallbacks/0/pool"),
        ({}, "/fallbacks/0"),
        ({"on": ["x"]}, "/fallbacks/0/on/0"),
    ):
        with pytest.raises(ConfigurationError) as raised:
            LoadBalancer({**apart(provider), "fallbacks": [rung]})
        assert place in {each for each, _ in raised.value.problems}


def test_a_cause_that_was_not_named_is_the_callers(provider: RunningProvider) -> None:
    provider.fault("primary", DOWN)
    options = Options(fallback_models={"gpt-4o": ["gpt-4.1"]}, fallback_on=["capacity"], max_attempts=1)
    with LoadBalancer(apart(provider), options) as balancer, pytest.raises(ProviderError):
        balancer.complete(model="gpt-4o", messages=HELLO)


def test_a_full_model_is_left_at_once(provider: RunningProvider) -> None:
    provider.fault("primary", Fault(kind=FaultKind.STATUS, status=429, retry_after_s=20.0))
    with LoadBalancer(apart(provider), STAND_IN) as balancer:
        served = [balancer.complete(model="gpt-4o", messages=HELLO, timeout_s=10).served for _ in range(3)]
    assert [each.fallback for each in served] == ["gpt-4o-mini"] * 3
    assert [len(each.attempts) for each in served] == [2, 1, 1], "what is known to be full is not even asked"


def test_calls_for_another_model() -> None:
    chat = json_call("openai", "chat/completions", {"model": "a", "messages": HELLO, "n": 1})
    changed = with_model(chat, "b")
    assert changed is not None
    assert (changed.model, b'"model":"b"' in changed.body) == ("b", True)
    gemini = http_call("POST", b"/v1beta/models/g-1:generateContent", b"", [], b'{"contents":[]}')
    changed = with_model(gemini, "g-2")
    assert changed is not None
    assert changed.path == "/v1beta/models/g-2:generateContent"
    upload = http_call("POST", b"/v1/audio/transcriptions", b"", [(b"content-type", b"multipart/form-data")], b"--x")
    assert with_model(upload, "b") is None


async def test_a_second_key_answers_for_one_that_is_late(provider: RunningProvider) -> None:
    provider.fault("primary", Fault(kind=FaultKind.HANG))
    async with AsyncLoadBalancer(document(provider, strategy="round_robin"), Options(hedge_share=0.5)) as balancer:
        hedging = balancer.engine._hedging
        assert hedging is not None
        for _ in range(LEAST_SAMPLES):
            hedging.ended("gpt-4o", [Attempt("x", 0.0, OutcomeKind.OK, 200, 0.5, 0.5)], "x")
        answers = [await balancer.complete(model="gpt-4o", messages=HELLO) for _ in range(3)]
        assert "primary" not in {answer.key for answer in answers}
        hedged = [each for answer in answers for each in answer.attempts if each.hedge]
        assert "ok" in [each.outcome for each in hedged]
        assert balancer.stats().in_flight == 0


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (Options(hedge_share=0.9), "/hedge_share"),
        (Options(fallback_on=["luck"]), "/fallback_on"),
        (Options(fallback_models={"a": ["a"]}), "/fallback_models"),
        (Options(fallback_models={"a": "b"}), "/fallback_models"),
        (Options(fallback_models={"a": []}), "/fallback_models"),
    ],
)
def test_options_that_mean_nothing_are_refused(provider: RunningProvider, options: Options, place: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        LoadBalancer(document(provider), options)
    assert place in {each for each, _ in raised.value.problems}


def test_nothing_is_waited_for_when_waiting_is_off(provider: RunningProvider) -> None:
    config = apart(provider)
    provider.fault("primary", Fault(kind=FaultKind.STATUS, status=429, retry_after_s=60.0))
    with LoadBalancer(config, Options(max_wait_s=0, max_attempts=1)) as balancer, pytest.raises(RateLimited):
        balancer.complete(model="gpt-4o", messages=HELLO)


async def test_an_answer_that_the_filter_ended_makes_another_model_stand_in(provider: RunningProvider) -> None:
    body = b'{"choices": [{"index": 0, "finish_reason": "content_filter", "message": {"content": ""}}]}'

    async def script(exchange: Exchange) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        await exchange.send(head + body)

    async with scripted_upstream(script) as upstream:
        found = apart(provider)
        found["providers"][0] |= {"base_url": upstream.base_url, "provider": "vllm"}  # type: ignore[index]
        for causes, served in ((("capacity",), None), (("content_policy",), "gpt-4o-mini")):
            options = Options(fallback_models={"gpt-4o": ["gpt-4o-mini"]}, fallback_on=causes)
            async with AsyncLoadBalancer(found, options) as balancer:
                answer = await balancer.complete(model="gpt-4o", messages=HELLO)
                assert answer.served.fallback == served
                assert balancer.stats().in_flight == 0
