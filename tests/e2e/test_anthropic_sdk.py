"""An unmodified Anthropic SDK talks through the gateway."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import pytest

from tests.e2e.conftest import RunningGateway

MODEL = "claude-haiku-4-5"
HELLO: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def client(gateway: RunningGateway, token: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway.base_url, api_key=token, max_retries=0) as client:
        yield client


def test_message(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model=MODEL, max_tokens=64, messages=HELLO)
    assert answer.content[0].type == "text"
    assert answer.usage.output_tokens > 0


def test_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model=MODEL, max_tokens=64, messages=HELLO) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 1
    assert final.stop_reason == "end_turn"


async def test_async_client_streams(gateway: RunningGateway, token: str) -> None:
    async with (
        anthropic.AsyncAnthropic(base_url=gateway.base_url, auth_token=token, max_retries=0) as client,
        client.messages.stream(model=MODEL, max_tokens=64, messages=HELLO) as stream,
    ):
        assert "".join([piece async for piece in stream.text_stream])


def test_count_tokens(client: anthropic.Anthropic) -> None:
    assert client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens > 0


def test_wrong_token_reads_as_the_sdk_expects(gateway: RunningGateway) -> None:
    with (
        anthropic.Anthropic(base_url=gateway.base_url, api_key="not-a-token", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError) as refused,
    ):
        client.messages.create(model=MODEL, max_tokens=8, messages=HELLO)
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["type"] == "error"
