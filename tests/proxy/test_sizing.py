"""Right-sizing: what is written into bodies, when it is not, what the caller is told, and that it stops itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.outcome import TokenUsage
from gateway.balancing.rightsizing import LEAST, MIN_SAMPLES
from gateway.metering.sse import AnswerTap
from gateway.proxy.intake import Intake
from gateway.proxy.output_limit import is_structured, with_output_limit
from gateway.proxy.sizing import Sized, Sizing
from tests.fakes.provider import RunningProvider, provider_config, running_provider
from tests.proxy.harness import Gateway, key, pool, running_gateway, tenant
from tests.proxy.scripted import Exchange, scripted_upstream

WRITTEN: list[tuple[str, str, str, bytes, bytes | None]] = [
    ("set", "chat/completions", "groq", b'{"max_tokens": 4096, "a":1.0}', b'{"max_tokens": 300, "a":1.0}'),
    ("newer name", "chat/completions", "openai", b'{"max_completion_tokens":9999}', b'{"max_completion_tokens":300}'),
    (
        "both names",
        "chat/completions",
        "openai",
        b'{"max_tokens":4096,"max_completion_tokens":100}',
        b'{"max_tokens":300,"max_completion_tokens":100}',
    ),
    ("smaller stays", "chat/completions", "openai", b'{"max_tokens":20}', b'{"max_tokens":20}'),
    ("unset", "chat/completions", "azure", b' {"model":"m"}', b' {"max_completion_tokens":300,"model":"m"}'),
    ("unset elsewhere", "chat/completions", "groq", b'{"model":"m"}', b'{"max_tokens":300,"model":"m"}'),
    ("null", "completions", "openai", b'{"max_tokens":null}', b'{"max_tokens":300}'),
    ("responses", "responses", "openai", b'{"max_output_tokens":5000}', b'{"max_output_tokens":300}'),
    ("anthropic", "messages", "anthropic", b'{"max_tokens":5000}', b'{"max_tokens":300}'),
    (
        "only the top level",
        "messages",
        "anthropic",
        b'{"metadata":{"max_tokens":9000},"messages":[{"content":"\\"max_tokens\\": 9000"}],"max_tokens":5000}',
        b'{"metadata":{"max_tokens":9000},"messages":[{"content":"\\"max_tokens\\": 9000"}],"max_tokens":300}',
    ),
    ("escaped key", "messages", "anthropic", b'{"max\\u005ftokens":5000}', b'{"max\\u005ftokens":300}'),
    ("twice", "messages", "anthropic", b'{"max_tokens":5000,"max_tokens":1}', None),
    ("twice, escaped", "messages", "anthropic", b'{"max_tokens":5000,"max\\u005ftokens":1}', None),
    ("no whole number", "messages", "anthropic", b'{"max_tokens":5e3}', None),
    ("a string", "messages", "anthropic", b'{"max_tokens":"5000"}', None),
    (
        "gemini",
        "generateContent",
        "gemini",
        b'{"contents":[],"generationConfig":{"topK":1,"maxOutputTokens":5000}}',
        b'{"contents":[],"generationConfig":{"topK":1,"maxOutputTokens":300}}',
    ),
    (
        "gemini unset",
        "generateContent",
        "gemini",
        b'{"contents":[]}',
        b'{"generationConfig":{"maxOutputTokens":300},"contents":[]}',
    ),
    (
        "gemini empty config",
        "streamGenerateContent",
        "gemini",
        b'{"generationConfig":{ }}',
        b'{"generationConfig":{"maxOutputTokens":300 }}',
    ),
]


@pytest.mark.parametrize(
    ("path", "provider", "body", "written"), [row[1:] for row in WRITTEN], ids=[r[0] for r in WRITTEN]
)
def test_what_is_written(path: str, provider: str, body: bytes, written: bytes | None) -> None:
    assert with_output_limit(body, path, provider, 300) == written


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.dictionaries(st.text() | st.sampled_from(["tools", "n"]), JSON),
    st.integers(301, 9999) | st.none(),
    st.booleans(),
)
def test_nothing_else_in_a_body_changes(body: dict[str, Any], asked: int | None, escaped: bool) -> None:
    body.pop("max_tokens", None)
    body["model"] = "m"
    if asked is not None:
        body["max_tokens"] = asked
    written = with_output_limit(json.dumps(body, ensure_ascii=escaped).encode(), "messages", "anthropic", 300)
    assert written is not None
    assert json.loads(written) == {**body, "max_tokens": 300}


@pytest.mark.parametrize(
    ("body", "structured"),
    [
        ({"messages": []}, False),
        ({"tools": []}, False),
        ({"response_format": {"type": "text"}}, False),
        ({"text": {"format": {"type": "text"}}}, False),
        ({"generationConfig": {"topK": 1}}, False),
        ({"tools": [{}]}, True),
        ({"functions": [{}]}, True),
        ({"response_format": {"type": "json_schema"}}, True),
        ({"response_format": {"type": "json_object"}}, True),
        ({"text": {"format": {"type": "json_schema"}}}, True),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ({"output_format": {"type": "json_schema"}}, True),
        ({"generationConfig": {"responseSchema": {}, "responseMimeType": "application/json"}}, True),
    ],
)
def test_what_a_cut_would_spoil_is_left_alone(body: dict[str, Any], structured: bool) -> None:
    assert is_structured(json.dumps(body).encode()) is structured


@pytest.mark.parametrize(
    ("chunks", "truncated"),
    [
        ([b'{"choices":[{"finish_reason":"length"}]}'], True),
        ([b'{"choices":[{"finish_reason":"stop","message":{"content":"\\"finish_reason\\":\\"length\\""}}]}'], False),
        ([b'data: {"type":"message_delta","delta":{"stop_reason": "max_tokens"}}\n\n'], True),
        ([b'{"candidates":[{"finishReason":"MAX_TOKENS"}]}'], True),
        (
            [b'{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"},"output":"', b"x" * 99_999],
            True,
        ),
        ([b'data: {"choices":[{"delta":{}, "finish_re', b'ason":"length"}]}\n\ndata: [DONE]\n\n'], True),
    ],
)
def test_answers_that_ended_at_their_limit_are_seen(chunks: list[bytes], truncated: bool) -> None:
    tap = AnswerTap(is_stream=chunks[0].startswith(b"data:"))
    for chunk in chunks:
        tap.feed(chunk)
    assert tap.is_truncated is truncated


def seen(sizing: Sizing, client: str = "app", *, tokens: int = 200, samples: int = MIN_SAMPLES) -> None:
    for _ in range(samples):
        Sized(sizing, client, "gpt-4o", None).ended(TokenUsage(10, tokens), truncated=False)


BODY = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}).encode()

UNSET: list[tuple[tuple[str, ...], int | None, int | None]] = [
    (("azure",), None, 300),
    (("bedrock",), None, 300),
    (("openai",), None, None),
    (("azure", "openai"), None, None),
    (("azure", "groq"), None, None),
    (("gemini",), 4096, None),
    (("openai",), 4096, 300),
    (("openai", "gemini"), 4096, 300),
    (("openai",), 280, None),
]


@pytest.mark.parametrize(("providers", "requested", "limit"), UNSET)
def test_it_is_lowered_only_where_that_reserves_less(
    providers: tuple[str, ...], requested: int | None, limit: int | None
) -> None:
    sizing = Sizing(lambda: 0.0)
    sizing.configure(providers)
    seen(sizing)
    found = sizing.begin("app", "gpt-4o", requested, BODY)
    assert (found.limit if found is not None else None) == limit


def test_clients_are_apart_and_a_tool_is_no_prose() -> None:
    sizing = Sizing(lambda: 0.0)
    sizing.configure(["openai"])
    seen(sizing)
    other = sizing.begin("other", "gpt-4o", 4096, BODY)
    assert other is not None
    assert other.limit is None
    tools = sizing.begin("app", "gpt-4o", 4096, b'{"model":"gpt-4o","tools":[{"type":"function"}]}')
    assert tools is not None
    assert tools.limit is None


def test_it_stops_itself_when_answers_are_cut() -> None:
    sizing = Sizing(lambda: 0.0)
    sizing.configure(["openai"])
    seen(sizing)
    for _ in range(2):
        found = sizing.begin("app", "gpt-4o", 4096, BODY)
        assert found is not None
        assert found.limit is not None
        found.ended(TokenUsage(10, found.limit), truncated=True)
    stopped = sizing.begin("app", "gpt-4o", 4096, BODY)
    assert stopped is not None
    assert stopped.limit is None
    assert (sizing.sized, sizing.truncated) == (2, 2)


@pytest.fixture(scope="module")
def provider() -> Iterator[RunningProvider]:
    with running_provider(provider_config(a=10_000)) as running:
        yield running


def warmed(gateway: Gateway) -> Sizing:
    found = next(iter(gateway.directory)).pools["main"].sizing
    assert found is not None
    seen(found, tokens=20)
    return found


@pytest.mark.parametrize(("size", "is_form", "may"), [(1000, False, True), (1000, True, False), (2**18, False, False)])
def test_a_long_body_is_not_walked_through(size: int, is_form: bool, may: bool) -> None:
    assert Intake(model="m", held=b" " * size, is_form=is_form).is_sizeable is may


async def test_the_provider_gets_the_lower_limit_and_the_caller_is_told() -> None:
    async def script(exchange: Exchange) -> None:
        body = (
            b'{"model":"gpt-4o","choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":9}}'
        )
        await exchange.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        await exchange.send(body)

    async with scripted_upstream(script) as upstream:
        keys = key("a", upstream.base_url, model_map={"gpt-4o": "gpt-4o-2024-11-20"})
        snapshot = tenant(pool("main", keys, settings={"right_size": True}))
        async with running_gateway(snapshot) as gateway:
            first = await gateway.call("/v1/chat/completions", {**json.loads(BODY), "max_tokens": 4096})
            assert "x-llm-proxy-max-tokens" not in first.headers
            sizing = warmed(gateway)
            reply = await gateway.call("/v1/chat/completions", {**json.loads(BODY), "max_tokens": 4096})
            assert reply.headers["x-llm-proxy-max-tokens"] == f"{LEAST}; was=4096"
            await gateway.settled(2)
            assert (sizing.sized, sizing.truncated) == (1, 0)
    sent = [json.loads(each.body) for each in upstream.exchanges]
    assert [each["max_tokens"] for each in sent] == [4096, LEAST]
    assert sent[1] == {**sent[0], "max_tokens": LEAST}
    assert sent[1]["model"] == "gpt-4o-2024-11-20"


async def test_streams_are_learned_from_too_and_it_is_off_unless_set(provider: RunningProvider) -> None:
    async with running_gateway(
        tenant(pool("main", key("a", provider.base_url), settings={"right_size": True}))
    ) as gateway:
        body = {**json.loads(BODY), "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
        await gateway.call("/v1/chat/completions", body)
        await gateway.settled(1)
        found = next(iter(gateway.directory)).pools["main"].sizing
        assert found is not None
        view = found._sizer.view("app", "gpt-4o", 0.0)
        assert view is not None
        assert (view.samples, view.largest > 0) == (1, True)
    async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
        assert next(iter(gateway.directory)).pools["main"].sizing is None
