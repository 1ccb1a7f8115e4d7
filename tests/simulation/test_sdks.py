"""The real SDKs, unmodified, straight against the simulated provider over a real socket."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.fakes.provider import RunningProvider

TEXT = "Grüße, 世界 🎉 — ok"


@pytest.fixture
def client(provider: RunningProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{provider.base_url}/v1", api_key="sim-key-open", max_retries=0) as made:
        yield made


@pytest.fixture
def claude(provider: RunningProvider) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=provider.base_url, api_key="sim-key-open", max_retries=0) as made:
        yield made


class Weather(BaseModel):
    city: str
    degrees: float


class TestOpenAI:
    def test_chat(self, client: openai.OpenAI, provider: RunningProvider) -> None:
        raw = client.chat.completions.with_raw_response.create(
            model="gpt-4o", messages=[{"role": "user", "content": f"echo: {TEXT}"}]
        )
        assert raw.headers["openai-organization"] == "org-open"
        assert raw.headers["x-request-id"].startswith("req_")
        assert raw.headers["x-ratelimit-limit-requests"] == "100000"
        completion = raw.parse()
        assert completion.choices[0].message.content == TEXT
        assert completion.choices[0].finish_reason == "stop"
        assert completion.usage is not None
        use = provider.use("open")
        assert (use.input_tokens, use.output_tokens) == (
            completion.usage.prompt_tokens,
            completion.usage.completion_tokens,
        )

    def test_the_same_prompt_gets_the_same_answer(self, client: openai.OpenAI) -> None:
        said = {
            client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
            .choices[0]
            .message.content
            for _ in range(3)
        }
        assert len(said) == 1

    def test_chat_stream_with_usage(self, client: openai.OpenAI) -> None:
        stream = client.chat.completions.create(
            model="gpt-4o",
            messages=[{"role": "user", "content": f"echo: {TEXT}"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == len(chunks) - 3
        assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "stop"

    def test_max_tokens_truncates(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "hi"}], max_completion_tokens=3
        )
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3

    def test_tool_call_and_its_result(self, client: openai.OpenAI) -> None:
        tool: openai.types.chat.ChatCompletionToolParam = {
            "type": "function",
            "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
        }
        asked = client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "hi"}], tools=[tool]
        )
        calls = asked.choices[0].message.tool_calls
        assert calls is not None
        assert calls[0].type == "function"
        assert calls[0].function.name == "look"
        assert asked.choices[0].finish_reason == "tool_calls"
        with client.chat.completions.stream(
            model="gpt-4o", messages=[{"role": "user", "content": "hi"}], tools=[tool]
        ) as stream:
            streamed = stream.get_final_completion().choices[0].message.tool_calls
        assert streamed is not None
        assert streamed[0].function.arguments == calls[0].function.arguments
        told = client.chat.completions.create(
            model="gpt-4o",
            messages=[
                {"role": "user", "content": "hi"},
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": calls[0].id, "type": "function", "function": {"name": "look", "arguments": ""}}
                    ],
                },
                {"role": "tool", "tool_call_id": calls[0].id, "content": "sunny"},
            ],
            tools=[tool],
        )
        assert told.choices[0].finish_reason == "stop"

    def test_structured_output(self, client: openai.OpenAI) -> None:
        parsed = client.chat.completions.parse(
            model="gpt-4o", messages=[{"role": "user", "content": "hi"}], response_format=Weather
        )
        assert isinstance(parsed.choices[0].message.parsed, Weather)

    def test_several_choices(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}], n=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]

    def test_completions(self, client: openai.OpenAI) -> None:
        whole = client.completions.create(model="gpt-4o", prompt="echo: one two", max_tokens=50)
        parts = client.completions.create(model="gpt-4o", prompt="echo: one two", max_tokens=50, stream=True)
        assert whole.choices[0].text == "one two" == "".join(part.choices[0].text for part in parts)

    def test_responses(self, client: openai.OpenAI) -> None:
        whole = client.responses.create(model="gpt-5", input=f"echo: {TEXT}")
        assert whole.output_text == TEXT
        assert whole.usage is not None
        events = list(client.responses.create(model="gpt-5", input=f"echo: {TEXT}", stream=True))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        final = events[-1]
        assert final.type == "response.completed"
        assert final.response.output_text == TEXT
        assert final.response.usage == whole.usage

    def test_responses_stream_of_a_tool_call(self, client: openai.OpenAI) -> None:
        with client.responses.stream(
            model="gpt-5",
            input="hi",
            tools=[{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}],
        ) as stream:
            item = stream.get_final_response().output[0]
        assert item.type == "function_call"
        assert item.name == "look"

    def test_embeddings(self, client: openai.OpenAI) -> None:
        one, other = (
            client.embeddings.create(model="text-embedding-3-small", input=["a", "b"], dimensions=64).data
            for _ in range(2)
        )
        assert len(one[0].embedding) == 64
        assert one[0].embedding == other[0].embedding != one[1].embedding
        plain = client.embeddings.create(
            model="text-embedding-3-small", input="a", dimensions=64, encoding_format="float"
        )
        assert plain.data[0].embedding == pytest.approx(one[0].embedding, abs=1e-6)
        assert sum(value * value for value in plain.data[0].embedding) == pytest.approx(1)

    def test_models(self, client: openai.OpenAI) -> None:
        assert "gpt-4o" in [model.id for model in client.models.list()]
        assert client.models.retrieve("gpt-4o").id == "gpt-4o"

    def test_moderations(self, client: openai.OpenAI) -> None:
        assert client.moderations.create(input="peace").model == "omni-moderation-latest"
        results = client.moderations.create(model="omni-moderation-latest", input=["peace", "violence"]).results
        assert [result.flagged for result in results] == [False, True]

    def test_images(self, client: openai.OpenAI) -> None:
        made = client.images.generate(model="dall-e-3", prompt="a door")
        assert made.data is not None
        assert made.data[0].b64_json is not None
        edited = client.images.edit(model="dall-e-2", prompt="a door", image=io.BytesIO(b"picture"))
        assert edited.data is not None

    def test_speech(self, client: openai.OpenAI) -> None:
        with client.audio.speech.with_streaming_response.create(model="tts-1", voice="alloy", input=TEXT) as answer:
            assert answer.headers["content-type"] == "audio/mpeg"
            assert TEXT.encode() in answer.read()

    def test_transcription_gets_every_byte(self, client: openai.OpenAI) -> None:
        audio = bytes(range(256)) * 1_000 + b"\r\n--\r\n"
        said = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", audio))
        assert said.text == f"{len(audio)} bytes, crc32 {zlib.crc32(audio):08x}"

    async def test_async_client(self, provider: RunningProvider) -> None:
        async with openai.AsyncOpenAI(base_url=f"{provider.base_url}/v1", api_key="sim-key-open") as client:
            stream = await client.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": f"echo: {TEXT}"}], stream=True
            )
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == TEXT

    def test_azure_client(self, provider: RunningProvider) -> None:
        with openai.AzureOpenAI(
            azure_endpoint=provider.base_url, api_key="sim-key-open", api_version="2024-10-21", max_retries=0
        ) as client:
            answer = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
        assert answer.model == "gpt-4o"


class TestOpenAIErrors:
    def test_unknown_key(self, provider: RunningProvider) -> None:
        with (
            openai.OpenAI(base_url=f"{provider.base_url}/v1", api_key="sim-key-unknown-42", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            client.models.list()
        assert caught.value.code == "invalid_api_key"
        assert "unknown-42" not in str(caught.value)
        assert provider.provider.ledger.unknown_key_requests == 1

    def test_revoked_key(self, client: openai.OpenAI, provider: RunningProvider) -> None:
        provider.revoke("open")
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        provider.restore("open")
        client.models.list()

    def test_rate_limit(self, provider: RunningProvider) -> None:
        with openai.OpenAI(base_url=f"{provider.base_url}/v1", api_key="sim-key-tight", max_retries=0) as client:
            client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
        assert caught.value.code == "rate_limit_exceeded"
        assert 0 < int(caught.value.response.headers["retry-after"]) <= 60
        assert provider.use("tight").by_status == {200: 1, 429: 1}

    def test_unknown_model(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="nothing-1", messages=[{"role": "user", "content": "hi"}])
        assert caught.value.code == "model_not_found"

    def test_bad_parameter(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="gpt-4o", messages=[])
        assert caught.value.param == "messages"


class TestAnthropic:
    def test_message(self, claude: anthropic.Anthropic) -> None:
        raw = claude.messages.with_raw_response.create(
            model="claude-sonnet-5", max_tokens=100, messages=[{"role": "user", "content": f"echo: {TEXT}"}]
        )
        assert raw.headers["anthropic-organization-id"] == "org-open"
        assert raw.headers["anthropic-ratelimit-requests-remaining"] == "99999"
        assert raw.headers["request-id"].startswith("req_")
        message = raw.parse()
        assert message.content[0].type == "text"
        assert message.content[0].text == TEXT
        assert message.stop_reason == "end_turn"

    def test_stream(self, claude: anthropic.Anthropic) -> None:
        with claude.messages.stream(
            model="claude-sonnet-5", max_tokens=100, messages=[{"role": "user", "content": f"echo: {TEXT}"}]
        ) as stream:
            assert "".join(stream.text_stream) == TEXT
            final = stream.get_final_message()
        assert final.usage.output_tokens == -(-len(TEXT) // 4)

    def test_tool_use(self, claude: anthropic.Anthropic) -> None:
        with claude.messages.stream(
            model="claude-sonnet-5",
            max_tokens=100,
            messages=[{"role": "user", "content": "hi"}],
            tools=[{"name": "look", "input_schema": {"type": "object"}}],
        ) as stream:
            final = stream.get_final_message()
        assert final.stop_reason == "tool_use"
        assert final.content[0].type == "tool_use"
        assert final.content[0].input == {"input": "hi"}

    def test_count_tokens(self, claude: anthropic.Anthropic) -> None:
        counted = claude.messages.count_tokens(
            model="claude-sonnet-5", messages=[{"role": "user", "content": "x" * 400}]
        )
        assert counted.input_tokens == 104

    def test_models(self, claude: anthropic.Anthropic) -> None:
        assert "claude-sonnet-5" in [model.id for model in claude.models.list()]

    def test_rate_limit(self, provider: RunningProvider) -> None:
        with anthropic.Anthropic(base_url=provider.base_url, api_key="sim-key-tight", max_retries=0) as client:
            client.messages.create(model="claude-sonnet-5", max_tokens=5, messages=[{"role": "user", "content": "hi"}])
            with pytest.raises(anthropic.RateLimitError) as caught:
                client.messages.create(
                    model="claude-sonnet-5", max_tokens=5, messages=[{"role": "user", "content": "hi"}]
                )
        assert int(caught.value.response.headers["retry-after"]) > 0

    def test_errors(self, claude: anthropic.Anthropic, provider: RunningProvider) -> None:
        with pytest.raises(anthropic.NotFoundError):
            claude.messages.create(model="nothing", max_tokens=5, messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(anthropic.BadRequestError):
            claude.messages.create(model="claude-sonnet-5", max_tokens=5, messages=[])
        provider.revoke("open")
        with pytest.raises(anthropic.AuthenticationError):
            claude.messages.create(model="claude-sonnet-5", max_tokens=5, messages=[{"role": "user", "content": "hi"}])

    async def test_async_stream(self, provider: RunningProvider) -> None:
        async with (
            anthropic.AsyncAnthropic(base_url=provider.base_url, auth_token="sim-key-open", api_key=None) as client,
            client.messages.stream(
                model="claude-haiku-5-5", max_tokens=100, messages=[{"role": "user", "content": f"echo: {TEXT}"}]
            ) as stream,
        ):
            assert "".join([text async for text in stream.text_stream]) == TEXT
