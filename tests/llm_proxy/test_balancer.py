"""`LoadBalancer` over real sockets: as printed, exact weights, failover, errors, stats, closing, and no key shown."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from gateway.balancing.quota import Limits
from gateway.simulation.config import KeyConfig, Latency, ProviderConfig
from gateway.simulation.faults import Fault, FaultKind
from llm_proxy import (
    AllKeysRejected,
    BalancerClosed,
    ConfigurationError,
    Deadlines,
    InvalidRequest,
    LLMProxyError,
    LoadBalancer,
    ModelNotServed,
    Options,
    ProviderError,
    ProviderUnreachable,
    RateLimited,
    RequestTooLarge,
    Timeout,
)
from tests.fakes.provider import RunningProvider, running_provider
from tests.llm_proxy.conftest import HELLO, WEIGHTS, document


def test_as_printed(provider: RunningProvider) -> None:
    balancer = LoadBalancer(
        {
            "providers": [
                {
                    "name": "openai-primary",
                    "api_key": "sim-key-primary",
                    "base_url": provider.base_url,
                    "weight": 50,
                    "rate_limit": 3000,
                }
            ],
            "strategy": "weighted_round_robin",
            "failover": True,
        }
    )
    response = balancer.complete(model="gpt-4", messages=[{"role": "user", "content": "Hello!"}])
    balancer.close()
    assert response.text == response.choices[0].message.content != ""
    assert response.choices[0].finish_reason == "stop"
    assert (response.model, response.key, response.provider) == ("gpt-4", "openai-primary", "openai")
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.prompt_tokens + response.usage.completion_tokens > 0
    assert [(attempt.key, attempt.outcome, attempt.status) for attempt in response.attempts] == [
        ("openai-primary", "ok", 200)
    ]
    assert response.raw["object"] == "chat.completion"
    assert response.served.request_id


def test_weights_are_exact(balancer: LoadBalancer, provider: RunningProvider) -> None:
    keys = Counter(balancer.complete(model="gpt-4o", messages=HELLO).key for _ in range(100))
    assert keys == provider.requests == WEIGHTS


def test_a_dead_and_a_broken_key_cost_no_error(balancer: LoadBalancer, provider: RunningProvider) -> None:
    provider.revoke("primary")
    provider.fault("secondary", Fault(kind=FaultKind.STATUS, status=503))
    answers = [balancer.complete(model="gpt-4o", messages=HELLO) for _ in range(30)]
    assert {answer.key for answer in answers} == {"tertiary"}
    assert provider.requests["primary"] == 1, "a rejected key is not asked again"
    assert balancer.stats().key("primary").health == "ejected"


def test_full_keys_are_left_alone_and_their_429s_do_not_arrive() -> None:
    keys = [KeyConfig(secret=f"sim-key-{name}", name=name, limits=Limits(rpm=60_000)) for name in WEIGHTS]
    # What the configuration does not know: the first key's account allows two requests a minute.
    keys[0] = replace_limits(keys[0], 2)
    with running_provider(ProviderConfig(keys=tuple(keys), latency=Latency(first_byte_s=0.0))) as provider:
        with LoadBalancer(document(provider, "round_robin", rate_limit=60_000)) as balancer:
            answers = [balancer.complete(model="gpt-4o", messages=HELLO) for _ in range(60)]
        assert len(answers) == 60
        assert provider.requests["primary"] <= 4


def replace_limits(key: KeyConfig, rpm: int) -> KeyConfig:
    return KeyConfig(secret=key.secret, name=key.name, limits=Limits(rpm=rpm))


def test_when_all_are_full_the_caller_learns_for_how_long() -> None:
    keys = tuple(KeyConfig(secret=f"sim-key-{name}", name=name, limits=Limits(rpm=1)) for name in WEIGHTS)
    with (
        running_provider(ProviderConfig(keys=keys, latency=Latency(first_byte_s=0.0))) as provider,
        LoadBalancer(document(provider, rate_limit=1), Options(max_wait_s=0.05)) as balancer,
    ):
        for _ in range(3):
            balancer.complete(model="gpt-4o", messages=HELLO)
        with pytest.raises(RateLimited) as caught:
            balancer.complete(model="gpt-4o", messages=HELLO)
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s <= 60
    assert sum(provider.requests.values()) == 3, "the fourth was not sent"


def test_a_full_pool_makes_callers_wait_rather_than_fail() -> None:
    keys = (KeyConfig(secret="sim-key-primary", name="primary", limits=Limits(rpm=6_000)),)
    with running_provider(ProviderConfig(keys=keys, latency=Latency(first_byte_s=0.0))) as provider:
        config = document(provider)
        config["providers"] = [{**config["providers"][0], "max_in_flight": 1}]
        with LoadBalancer(config) as balancer, balancer.stream(model="gpt-4o", messages=HELLO) as held:
            with pytest.raises(LLMProxyError):
                balancer.complete(model="gpt-4o", messages=HELLO, timeout_s=0.05)
            assert balancer.stats().waiting == 0
            list(held)
            assert balancer.complete(model="gpt-4o", messages=HELLO).text


def test_all_keys_rejected(balancer: LoadBalancer, provider: RunningProvider) -> None:
    for name in WEIGHTS:
        provider.revoke(name)
    with pytest.raises(AllKeysRejected, match="Check the keys"):
        balancer.complete(model="gpt-4o", messages=HELLO)
    assert balancer.stats().in_flight == 0


def test_the_providers_own_error_is_told(balancer: LoadBalancer, provider: RunningProvider) -> None:
    with pytest.raises(ProviderError) as caught:
        balancer.complete(model="gpt-4o", messages=[])
    assert caught.value.status == 400
    assert "non-empty array" in str(caught.value)
    assert "messages" in caught.value.body
    assert sum(provider.requests.values()) == 1, "the caller's own mistake is not tried again"


def test_without_failover_one_key_is_tried(provider: RunningProvider) -> None:
    for name in WEIGHTS:
        provider.fault(name, Fault(kind=FaultKind.STATUS, status=500))
    with (
        LoadBalancer({**document(provider), "failover": False}) as balancer,
        pytest.raises(ProviderError, match="answered 500"),
    ):
        balancer.complete(model="gpt-4o", messages=HELLO)
    assert sum(provider.requests.values()) == 1


def test_a_provider_that_hangs(balancer: LoadBalancer, provider: RunningProvider) -> None:
    for name in WEIGHTS:
        provider.fault(name, Fault(kind=FaultKind.HANG))
    with pytest.raises(Timeout) as caught:
        balancer.complete(model="gpt-4o", messages=HELLO, timeout_s=0.1)
    assert isinstance(caught.value, TimeoutError)
    assert balancer.stats().in_flight == 0


def test_a_hanging_key_is_left_for_another(provider: RunningProvider) -> None:
    provider.fault("primary", Fault(kind=FaultKind.HANG))
    options = Options(deadlines=Deadlines(first_byte_s=0.2))
    with LoadBalancer(document(provider), options) as balancer:
        answers = [balancer.complete(model="gpt-4o", messages=HELLO) for _ in range(3)]
    assert ["timeout", "ok"] in [[attempt.outcome for attempt in answer.attempts] for answer in answers]
    assert "primary" not in {answer.key for answer in answers}


def test_nobody_listens() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        config = {"providers": [{"name": "ollama", "api_key": "not-needed", "base_url": url}]}
        with LoadBalancer(config) as balancer, pytest.raises(ProviderUnreachable, match="could not be reached"):
            balancer.complete(model="llama", messages=HELLO)


def test_an_answer_that_is_none(balancer: LoadBalancer, provider: RunningProvider) -> None:
    for name in WEIGHTS:
        provider.fault(name, Fault(kind=FaultKind.MALFORMED))
    with pytest.raises(ProviderError, match="not understood"):
        balancer.complete(model="gpt-4o", messages=HELLO)


def test_an_answer_that_is_cut(balancer: LoadBalancer, provider: RunningProvider) -> None:
    for name in WEIGHTS:
        provider.fault(name, Fault(kind=FaultKind.SHORT_BODY))
    with pytest.raises(ProviderUnreachable, match="broke off"):
        balancer.complete(model="gpt-4o", messages=HELLO)
    assert balancer.stats().in_flight == 0


def test_a_model_that_no_key_serves(provider: RunningProvider) -> None:
    with LoadBalancer(document(provider, models=["gpt-*"])) as balancer:
        with pytest.raises(ModelNotServed, match="claude"):
            balancer.complete(model="claude-sonnet-5", messages=HELLO)
        assert balancer.complete(model="gpt-4o", messages=HELLO).text
    assert sum(provider.requests.values()) == 1


def test_a_request_larger_than_any_limit() -> None:
    entry = {"name": "openai", "api_key": "sk-0123456789", "rate_limit": {"tpm": 1000}}
    with LoadBalancer({"providers": [entry]}) as balancer, pytest.raises(RequestTooLarge, match="Shorten it"):
        balancer.complete(model="gpt-4o", messages=HELLO, max_tokens=5000)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"model": "", "messages": HELLO}, "name of a model"), ({"model": "m", "messages": "Hello!"}, "must be a list")],
)
def test_wrong_arguments(balancer: LoadBalancer, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        balancer.complete(**arguments)


def test_parameters_reach_the_provider(balancer: LoadBalancer) -> None:
    answer = balancer.complete(model="gpt-4o", messages=HELLO, n=2, max_tokens=3)
    assert len(answer.choices) == 2
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    calls = balancer.complete(model="gpt-4o", messages=HELLO, tools=[tool]).choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.name == "look"


def test_anthropic_messages(balancer: LoadBalancer) -> None:
    answer = balancer.messages(model="claude-sonnet-5", messages=HELLO, max_tokens=100)
    assert answer.text
    assert (answer.stop_reason, answer.provider) == ("end_turn", "simulated")
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0
    assert answer.key in WEIGHTS


def test_stats(balancer: LoadBalancer) -> None:
    assert balancer.stats().keys[0].requests == 0
    for _ in range(10):
        balancer.complete(model="gpt-4o", messages=HELLO)
    stats = balancer.stats()
    assert stats.strategy == "weighted"
    assert {key.name: key.requests for key in stats.keys} == {"primary": 5, "secondary": 3, "tertiary": 2}
    assert stats.key("primary").outcomes == {"ok": 5}
    assert stats.key("primary").first_byte_s is not None
    assert (stats.in_flight, stats.waiting, stats.open_connections, stats.idle_connections) == (0, 0, 1, 1)
    with pytest.raises(KeyError):
        stats.key("none")


def test_close_is_final_and_repeatable(provider: RunningProvider) -> None:
    balancer = LoadBalancer(document(provider))
    balancer.complete(model="gpt-4o", messages=HELLO)
    stream = balancer.stream(model="gpt-4o", messages=HELLO)
    balancer.close()
    balancer.close()
    for call in (lambda: balancer.complete(model="gpt-4o", messages=HELLO), balancer.stats, lambda: next(stream)):
        with pytest.raises(BalancerClosed):
            call()
    stream.close()


def test_options_are_checked() -> None:
    options = replace(Options(), deadlines=Deadlines(connect_s=0), max_attempts=0, max_wait_s=-1, ca_file="missing.pem")
    with pytest.raises(ConfigurationError) as caught:
        LoadBalancer({"providers": [{"name": "openai", "api_key": "sk-0123456789"}]}, options)
    assert [pointer for pointer, _ in caught.value.problems] == ["/deadlines.connect_s", "/max_wait_s", "/max_attempts"]
    for bad in (Options(ca_file="missing.pem"), Options(egress_proxy="socks://x")):
        with pytest.raises(ConfigurationError):
            LoadBalancer({"providers": [{"name": "openai", "api_key": "sk-0123456789"}]}, bad)


def test_from_file(tmp_path: Any, provider: RunningProvider) -> None:
    path = tmp_path / "pool.json"
    for text, says in ((None, "cannot be read"), ("{", "line 1"), ("[]", "must be an object")):
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigurationError, match=says):
            LoadBalancer.from_file(path)


def test_no_key_is_ever_shown(balancer: LoadBalancer, provider: RunningProvider) -> None:
    """The simulated provider quotes the key in its 401, as real ones do with parts of it."""
    shown = [repr(balancer), str(balancer), repr(vars(balancer)), repr(balancer.engine.configuration)]
    answer = balancer.complete(model="gpt-4o", messages=HELLO)
    shown += [repr(answer), repr(balancer.stats())]
    for break_all in (provider.revoke, lambda name: provider.fault(name, Fault(kind=FaultKind.STATUS, status=401))):
        for name in WEIGHTS:
            break_all(name)
        with pytest.raises(LLMProxyError) as caught:
            balancer.complete(model="gpt-4o", messages=HELLO)
        shown += [str(caught.value), repr(caught.value), repr(vars(caught.value)), repr(caught.value.__cause__)]
    assert not [text for text in shown if "sim-key" in text]


def test_a_key_that_the_provider_quotes_is_blotted_out(balancer: LoadBalancer) -> None:
    messages: list[dict[str, Any]] = [{"role": "user"}, *HELLO, {"sim-key-primary": 1}]
    with pytest.raises(ProviderError) as caught:
        balancer.complete(model="gpt-4o", messages=messages)
    assert "sim-key-primary" not in repr(vars(caught.value))


def test_dropping_it_ends_its_thread(provider: RunningProvider) -> None:
    balancer = LoadBalancer({**document(provider), "name": "dropped"})
    balancer.complete(model="gpt-4o", messages=HELLO)
    assert any(thread.name == "llm-proxy-dropped" for thread in threading.enumerate())
    del balancer
    gc.collect()
    until = time.monotonic() + 10
    while any(thread.name == "llm-proxy-dropped" for thread in threading.enumerate()):
        assert time.monotonic() < until
