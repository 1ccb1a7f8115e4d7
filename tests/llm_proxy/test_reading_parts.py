"""The pure parts: event reader, usage reader, recognition of SDKs' requests, answers as values."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.outcome import TokenUsage
from llm_proxy import Served
from llm_proxy.answers import NotUnderstood, read_chunk, read_completion, read_event, read_message
from llm_proxy.calls import chat_call, http_call, json_call
from llm_proxy.errors import InvalidRequest
from llm_proxy.events import MAX_EVENT_BYTES, EventReader, EventTooLong, UsageReader

SERVED = Served("k", "openai", None, ())
STREAM = b': hello\n\ndata: {"a":1}\n\nevent: ping\n\nevent: x\r\ndata: one\r\ndata: two\r\n\r\ndata: [DONE]\n\n'
EVENTS = [("", b'{"a":1}'), ("x", b"one\ntwo"), ("", b"[DONE]")]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_do_not_depend_on_how_bytes_arrive(cuts: list[int]) -> None:
    reader = EventReader()
    bounds = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in pairwise(bounds)]
    assert [event for piece in pieces for event in reader.feed(piece)] == EVENTS


def test_the_last_event_may_lack_its_blank_line() -> None:
    reader = EventReader()
    assert list(reader.feed(b"data: 1")) == []
    assert reader.rest() == ("", b"1")
    assert reader.rest() is None


def test_an_endless_event_is_refused() -> None:
    with pytest.raises(EventTooLong):
        list(EventReader().feed(b"data: " + b"x" * MAX_EVENT_BYTES))


@pytest.mark.parametrize(
    ("texts", "usage"),
    [
        (['{"usage":{"prompt_tokens":5,"completion_tokens":7}}'], TokenUsage(5, 7)),
        (
            ['{"usage":{"prompt_tokens":5,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":3}}}'],
            TokenUsage(5, 7, 3),
        ),
        (
            [
                '{"message":{"usage":{"input_tokens":5,"cache_read_input_tokens":3,"cache_creation_input_tokens":2}}}',
                '{"type":"message_delta","usage":{"output_tokens":9}}',
            ],
            TokenUsage(10, 9, 3),
        ),
        (['{"response":{"usage":{"input_tokens":5,"output_tokens":7}}}'], TokenUsage(5, 7)),
        (
            ['{"usageMetadata":{"promptTokenCount":5,"candidatesTokenCount":7,"thoughtsTokenCount":2}}'],
            TokenUsage(5, 9),
        ),
        (['{"usage":null}', '{"usage":{"prompt_tokens":-1}}', '{"usage":[]}', '"usage', "[DONE]"], None),
        (['{"usage":{"prompt_tokens":true,"completion_tokens":99999999999}}'], None),
    ],
)
def test_usage_is_read_in_every_dialect(texts: list[str], usage: TokenUsage | None) -> None:
    reader = UsageReader()
    for text in texts:
        reader.feed(text.encode())
    assert reader.reported == usage


@pytest.mark.parametrize(
    ("text", "usage"),
    [
        pytest.param(
            '{"usage": {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135}}',
            TokenUsage(32, 103),
            id="xai",
        ),
        pytest.param('{"usage": {"prompt_tokens": 5, "total_tokens": 41}}', TokenUsage(5, 36), id="thoughts alone"),
        pytest.param(
            '{"usageMetadata": {"promptTokenCount": 5, "toolUsePromptTokenCount": 7, "thoughtsTokenCount": 2,'
            ' "candidatesTokenCount": 1, "totalTokenCount": 15}}',
            TokenUsage(12, 3),
            id="gemini's tools",
        ),
        pytest.param(
            '{"usage": {"input_tokens": 10, "cache_creation_input_tokens": 700, "output_tokens": 3,'
            ' "cache_creation": {"ephemeral_1h_input_tokens": 400}}}',
            TokenUsage(710, 3),
            id="anthropic's writes",
        ),
    ],
)
def test_nothing_that_is_charged_is_left_out(text: str, usage: TokenUsage) -> None:
    reader = UsageReader()
    reader.feed(text.encode())
    assert reader.reported == usage


def test_what_a_message_begins_with_is_no_count_of_its_output() -> None:
    reader = UsageReader()
    reader.feed(b'{"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}')
    for _ in range(61):
        reader.feed(b"{}")
    assert reader.settled(40) == TokenUsage(25, 60, reported=False)
    reader.feed(b'{"type": "message_delta", "usage": {"output_tokens": 15}}')
    assert reader.settled(40) == TokenUsage(25, 15)


def test_a_silent_stream_is_estimated() -> None:
    reader = UsageReader()
    for _ in range(12):
        reader.feed(b"{}")
    assert reader.settled(40) == TokenUsage(40, 10, reported=False)


def body_of(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("method", "path", "dialect", "model", "output"),
    [
        ("POST", "/v1/chat/completions", "openai", "m", 7),
        ("POST", "/v1/responses", "openai", "m", 7),
        ("POST", "/v1/embeddings", "openai", "m", 0),
        ("POST", "/v1/messages", "anthropic", "m", 7),
        ("POST", "/v1beta/models/gemini-2.5-flash:generateContent", "gemini", "gemini-2.5-flash", 7),
    ],
)
def test_sdk_requests_are_recognised(method: str, path: str, dialect: str, model: str, output: int) -> None:
    call = http_call(method, path.encode(), b"", [], body_of(model="m", max_tokens=7))
    assert (call.dialect, call.model, call.est_output_tokens, call.path) == (dialect, model, output, path)


def test_a_request_that_sets_no_maximum_says_so() -> None:
    """Bedrock reserves 64,000 tokens for it, and OpenAI none."""
    assert http_call("POST", b"/v1/chat/completions", b"", [], body_of(model="m")).output_unset
    assert json_call("openai", "chat/completions", {"model": "m"}).output_unset
    assert not json_call("openai", "chat/completions", {"model": "m", "max_tokens": 7}).output_unset
    assert not json_call("openai", "embeddings", {"model": "m"}).output_unset


def test_gemini_streams_as_events() -> None:
    call = http_call("POST", b"/v1beta/models/g:streamGenerateContent", b"alt=sse&key=x", [], b"{}")
    assert call.path.endswith(":streamGenerateContent?alt=sse")


def test_form_names_its_model() -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b--\r\n'
    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    assert http_call("POST", b"/v1/audio/transcriptions", b"", headers, body).model == "whisper-1"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files"),
        ("POST", "/v1/batches"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/../v1/chat/completions"),
        ("POST", "/v1/threads/abc/runs"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1beta/models/a/b:generateContent"),
    ],
)
def test_what_belongs_to_one_account_is_refused(method: str, path: str) -> None:
    with pytest.raises(InvalidRequest, match="belongs to one account"):
        http_call(method, path.encode(), b"", [], b"{}")


def test_credentials_and_framing_are_not_forwarded() -> None:
    names = (b"authorization", b"x-api-key", b"cookie", b"host", b"content-length", b"openai-organization", b"te")
    call = http_call(
        "POST", b"/v1/responses", b"", [*((name, b"x") for name in names), (b"openai-beta", b"y")], b'{"model":"m"}'
    )
    assert dict(call.headers) == {b"openai-beta": b"y", b"accept-encoding": b"identity"}


@pytest.mark.parametrize(
    ("model", "messages", "says"),
    [("", [], "model must be"), (None, [], "model must be"), ("m", "Hello", "messages must be a list")],
)
def test_arguments_are_checked_before_anything_is_sent(model: Any, messages: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        chat_call(model, messages, False, {})


def test_arguments_that_are_no_json_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="cannot be written as JSON"):
        json_call("openai", "chat/completions", {"model": "m", "seed": object()})


def test_a_completion_is_read_with_what_providers_add_and_leave_out() -> None:
    read = read_completion(
        body_of(choices=[{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}], "x": 1}}], new=2),
        SERVED,
        None,
    )
    assert (read.text, read.id, read.usage, read.raw["new"]) == ("ab", "", None, 2)
    assert read_completion(b"{}", SERVED, None).text == ""


def test_chunks_and_messages_are_read() -> None:
    assert read_chunk("", body_of(choices=[{"delta": {"content": "a"}}]), None).text == "a"
    assert read_chunk("", body_of(choices=[]), TokenUsage(1, 2)).text == ""
    assert read_message(body_of(content=[{"type": "text", "text": "a"}, {"type": "x"}]), SERVED, None).text == "a"
    event = body_of(type="content_block_delta", delta={"type": "text_delta", "text": "a"})
    assert read_event("content_block_delta", event, None).text == "a"
    assert read_event("ping", body_of(type="ping"), None).text == ""


@pytest.mark.parametrize("body", [b"", b"[]", b"not json", b'{"choices":7}', b"\xff", b"[" * 100_000])
def test_what_is_no_answer_is_not_understood(body: bytes) -> None:
    with pytest.raises(NotUnderstood):
        read_completion(body, SERVED, None)
