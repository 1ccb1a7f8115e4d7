"""An unmodified OpenAI SDK talks through the gateway, with a token that Authlib's client fetched."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator

import openai
import pytest

from tests.e2e.conftest import RunningGateway

HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def client(gateway: RunningGateway, token: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=token, max_retries=0) as client:
        yield client


def test_chat_completion(client: openai.OpenAI, gateway: RunningGateway) -> None:
    answer = client.chat.completions.create(model=gateway.model, messages=HELLO)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0
    assert answer._request_id, "the SDK's own request id comes from x-request-id"


def test_chat_stream_arrives_in_pieces(client: openai.OpenAI, gateway: RunningGateway) -> None:
    with client.chat.completions.create(model=gateway.model, messages=HELLO, stream=True) as stream:
        pieces = [c.choices[0].delta.content for c in stream if c.choices and c.choices[0].delta.content]
    assert len(pieces) > 1


async def test_async_client_streams(gateway: RunningGateway, token: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=token, max_retries=0) as client:
        answer = await client.chat.completions.create(model=gateway.model, messages=HELLO)
        assert answer.choices[0].message.content
        stream = await client.chat.completions.create(
            model=gateway.model, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def test_responses_plain_and_streamed(client: openai.OpenAI, gateway: RunningGateway) -> None:
    assert client.responses.create(model=gateway.model, input="Hello!").output_text
    with client.responses.create(model=gateway.model, input="Hello!", stream=True) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


def test_legacy_completions(client: openai.OpenAI, gateway: RunningGateway) -> None:
    assert client.completions.create(model=gateway.model, prompt="Hello").choices[0].text


def test_embeddings(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    assert len(answer.data) == 2
    assert answer.data[0].embedding


def test_moderations(client: openai.OpenAI) -> None:
    assert client.moderations.create(model="omni-moderation-latest", input="hello").results


def test_images(client: openai.OpenAI) -> None:
    assert client.images.generate(model="gpt-image-1", prompt="a bridge").data


def test_audio_in_is_a_multipart_upload(client: openai.OpenAI) -> None:
    sound = io.BytesIO(b"RIFF" + b"\x00" * 3_000_000)
    sound.name = "speech.wav"
    assert client.audio.transcriptions.create(model="whisper-1", file=sound).text


def test_audio_out_is_bytes(client: openai.OpenAI) -> None:
    assert client.audio.speech.create(model="tts-1", voice="alloy", input="hello").read()


def test_models_lists_what_the_pool_serves(client: openai.OpenAI, gateway: RunningGateway) -> None:
    assert gateway.model in [model.id for model in client.models.list()]


def test_weights_hold_over_any_hundred_requests(client: openai.OpenAI, gateway: RunningGateway) -> None:
    served = Counter[str]()
    longest_run, run, previous = 0, 0, ""
    for _ in range(100):
        raw = client.chat.completions.with_raw_response.create(model=gateway.model, messages=HELLO)
        key = raw.headers["x-llm-proxy-key"]
        run = run + 1 if key == previous else 1
        longest_run, previous = max(longest_run, run), key
        served[key] += 1
        assert raw.headers["x-llm-proxy-pool"] == gateway.pool
        assert raw.headers["x-llm-proxy-attempts"] == "1"
        assert raw.headers["x-llm-proxy-request-id"]
    assert sorted(served.values(), reverse=True) == [50, 30, 20]
    assert longest_run <= 2


def test_files_are_not_relayed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.files.list()
    assert "request_id" in str(refused.value.body) or refused.value.response.headers["x-llm-proxy-request-id"]


def test_wrong_token_reads_as_the_sdk_expects(gateway: RunningGateway) -> None:
    with (
        openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key="not-a-token", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(model=gateway.model, messages=HELLO)
