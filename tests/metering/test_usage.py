"""Usage out of answers, one named case each, in the shapes that the providers document."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.outcome import TokenUsage
from gateway.metering.sse import HEAD_BYTES, TAIL_BYTES, AnswerTap
from gateway.metering.usage import EMPTY, read_body, read_tail

CHAT = {
    "id": "chatcmpl-1",
    "model": "gpt-4o-2024-08-06",
    "choices": [{"message": {"content": "hi"}}],
    "usage": {
        "prompt_tokens": 20,
        "completion_tokens": 5,
        "total_tokens": 25,
        "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
    },
}
RESPONSE = {
    "object": "response",
    "model": "gpt-4.1",
    "usage": {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 2}, "output_tokens": 9, "total_tokens": 16},
}
EMBEDDING = {"model": "text-embedding-3-small", "data": [], "usage": {"prompt_tokens": 4, "total_tokens": 4}}
MESSAGE = {
    "type": "message",
    "model": "claude-sonnet-4-5",
    "usage": {
        "input_tokens": 10,
        "cache_creation_input_tokens": 100,
        "cache_read_input_tokens": 1000,
        "output_tokens": 3,
    },
}
GEMINI = {
    "candidates": [],
    "usageMetadata": {
        "promptTokenCount": 11,
        "candidatesTokenCount": 4,
        "thoughtsTokenCount": 6,
        "cachedContentTokenCount": 5,
        "totalTokenCount": 21,
    },
    "modelVersion": "gemini-2.5-flash",
}


@pytest.mark.parametrize(
    ("body", "model", "usage"),
    [
        pytest.param(CHAT, "gpt-4o-2024-08-06", TokenUsage(20, 5, 8), id="openai chat"),
        pytest.param(RESPONSE, "gpt-4.1", TokenUsage(7, 9, 2), id="openai responses"),
        pytest.param(EMBEDDING, "text-embedding-3-small", TokenUsage(4, 0, 0), id="openai embeddings"),
        pytest.param(
            MESSAGE, "claude-sonnet-4-5", TokenUsage(1110, 3, 1000, cache_write=100), id="anthropic counts caches apart"
        ),
        pytest.param(
            {
                "model": "claude-sonnet-4-5",
                "usage": {
                    "input_tokens": 10,
                    "cache_creation_input_tokens": 700,
                    "cache_creation": {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 400},
                    "cache_read_input_tokens": 0,
                    "output_tokens": 3,
                    "server_tool_use": {"web_search_requests": 2},
                    "service_tier": "standard",
                },
            },
            "claude-sonnet-4-5",
            TokenUsage(710, 3, 0, cache_write=700, cache_write_1h=400),
            id="anthropic tells how long the cache keeps",
        ),
        pytest.param(
            {
                "model": "gpt-5.6",
                "usage": {
                    "input_tokens": 2000,
                    "input_tokens_details": {"cached_tokens": 500, "cache_write_tokens": 1400},
                    "output_tokens": 3,
                    "output_tokens_details": {"reasoning_tokens": 2},
                    "total_tokens": 2003,
                },
            },
            "gpt-5.6",
            TokenUsage(2000, 3, 500, cache_write=1400),
            id="openai counts what it writes to the cache as input",
        ),
        pytest.param(
            {
                "model": "grok-4.6",
                "usage": {
                    "prompt_tokens": 32,
                    "completion_tokens": 9,
                    "total_tokens": 135,
                    "completion_tokens_details": {"reasoning_tokens": 94},
                },
            },
            "grok-4.6",
            TokenUsage(32, 103, 0),
            id="xai leaves thoughts out of the completion",
        ),
        pytest.param(
            {"model": "gemini-2.5-pro", "usage": {"prompt_tokens": 5, "total_tokens": 41}},
            "gemini-2.5-pro",
            TokenUsage(5, 36, 0),
            id="thoughts alone, on Gemini's OpenAI face",
        ),
        pytest.param(
            {"model": 7, "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 9}},
            None,
            TokenUsage(5, 4, 0),
            id="thoughts left out, beside an odd field",
        ),
        pytest.param(GEMINI, "gemini-2.5-flash", TokenUsage(11, 10, 5), id="gemini thoughts are output"),
        pytest.param({"model": "m", "usage": None}, "m", None, id="null usage"),
        pytest.param({"model": 7, "usage": {}}, None, None, id="model of the wrong type"),
        pytest.param({"usage": {"prompt_tokens": -1, "completion_tokens": True}}, None, None, id="absurd counts"),
        pytest.param({"usage": {"prompt_tokens": 10**18}}, None, None, id="counts beyond an integer"),
        pytest.param(
            {"usage": {"input_tokens": 2**31 - 1, "cache_read_input_tokens": 1, "output_tokens": 3}},
            None,
            TokenUsage(0, 3, 0),
            id="a sum beyond an integer",
        ),
        pytest.param(
            {
                "usageMetadata": {
                    "promptTokenCount": 2**31 - 1,
                    "toolUsePromptTokenCount": 1,
                    "candidatesTokenCount": 2**31 - 1,
                    "thoughtsTokenCount": 1,
                }
            },
            None,
            None,
            id="sums beyond an integer",
        ),
        pytest.param(
            {"usage": {"prompt_tokens": 4, "completion_tokens": 2, "prompt_tokens_details": []}},
            None,
            TokenUsage(4, 2, 0),
            id="details of the wrong type",
        ),
        pytest.param(
            {"usage": {"prompt_tokens": 4.0, "completion_tokens": 2e0}},
            None,
            TokenUsage(4, 2, 0),
            id="counts with a point",
        ),
        pytest.param(
            {"usage": {"prompt_tokens": 4.5, "completion_tokens": 2}}, None, TokenUsage(0, 2), id="half a token"
        ),
        pytest.param(
            {"model": "m", "message": {"text": "hi"}, "usage": {"prompt_tokens": 4, "completion_tokens": 2}},
            "m",
            TokenUsage(4, 2, 0),
            id="a message that says nothing of it",
        ),
        pytest.param({"usage": "many"}, None, None, id="usage of the wrong type"),
        pytest.param({"error": {"message": "no"}}, None, None, id="an error body"),
        pytest.param([1], None, None, id="not an object"),
        pytest.param(
            [
                {"modelVersion": "g", "usageMetadata": {"promptTokenCount": 3, "totalTokenCount": 3}},
                {"modelVersion": "g", "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 8}},
                {"modelVersion": "g", "candidates": [{"finishReason": "STOP"}]},
            ],
            "g",
            TokenUsage(3, 8),
            id="gemini streams a list to who does not ask for events",
        ),
    ],
)
def test_json_answers(body: Any, model: str | None, usage: TokenUsage | None) -> None:
    reading = read_body(json.dumps(body).encode())
    assert (reading.model, reading.tokens()) == (model, usage)


def sse(*events: Any, names: bool = False) -> bytes:
    lines = []
    for event in events:
        if names and isinstance(event, dict):
            lines.append(f"event: {event['type']}\n")
        lines.append(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n")
    return "".join(lines).encode()


def delta(text: str) -> dict[str, Any]:
    return {"model": "gpt-4o", "choices": [{"delta": {"content": text}}], "usage": None}


STREAMS = {
    "openai chat with include_usage": (
        sse(*[delta("x")] * 50, {"model": "gpt-4o", "choices": [], "usage": CHAT["usage"]}, "[DONE]"),
        ("gpt-4o", TokenUsage(20, 5, 8)),
    ),
    "openai chat without usage is estimated by its events": (
        sse(*[delta("x")] * 50, "[DONE]"),
        ("gpt-4o", TokenUsage(33, 49, 0, reported=False)),
    ),
    "openai responses": (
        sse(
            {"type": "response.created", "response": {"model": "gpt-4.1", "usage": None}},
            {"type": "response.output_text.delta", "delta": "hi"},
            {"type": "response.completed", "response": RESPONSE},
            names=True,
        ),
        ("gpt-4.1", TokenUsage(7, 9, 2)),
    ),
    "openai responses whose last event is larger than the window": (
        sse(
            {"type": "response.created", "response": {"model": "gpt-4.1", "usage": None}},
            {"type": "response.completed", "response": {"output": "y" * 3 * TAIL_BYTES, **RESPONSE}},
            names=True,
        ),
        ("gpt-4.1", TokenUsage(7, 9, 2)),
    ),
    "anthropic messages: input in the first event, output in the last": (
        sse(
            {
                "type": "message_start",
                "message": {"model": "claude-x", "usage": {"input_tokens": 25, "output_tokens": 1}},
            },
            *[{"type": "content_block_delta", "delta": {"text": "z" * 500}}] * 200,
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}},
            {"type": "message_stop"},
            names=True,
        ),
        ("claude-x", TokenUsage(25, 15, 0)),
    ),
    "anthropic messages that the caller left": (
        sse(
            {
                "type": "message_start",
                "message": {"model": "claude-x", "usage": {"input_tokens": 25, "output_tokens": 1}},
            },
            {"type": "content_block_start", "content_block": {"type": "text", "text": ""}},
            *[{"type": "content_block_delta", "delta": {"text": "z"}}] * 60,
            names=True,
        ),
        ("claude-x", TokenUsage(25, 60, 0, reported=False)),
    ),
    "gemini counts grow, the last wins": (
        sse(
            {"modelVersion": "g", "usageMetadata": {"promptTokenCount": 3}},
            {"modelVersion": "g", "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 8}},
        ),
        ("g", TokenUsage(3, 8, 0)),
    ),
    "a stream cut in the middle of an event": (
        sse(*[delta("x")] * 10)[:-40],
        ("gpt-4o", TokenUsage(33, 8, 0, reported=False)),
    ),
    "nothing came": (b"", (None, TokenUsage(0, 0, 0, reported=False))),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("size", [1, 7, 100, 10**9])
def test_streams_in_any_chunking(name: str, size: int) -> None:
    stream, expected = STREAMS[name]
    tap = AnswerTap(is_stream=True)
    for start in range(0, len(stream), size):
        tap.feed(stream[start : start + size])
    usage, model = tap.result(est_input_tokens=33)
    if size == 1 and not usage.reported:
        # Estimates may be lower, never higher.
        assert usage.output <= expected[1].output
        return
    assert model == expected[0]
    if usage.reported or size > 7:
        assert usage == expected[1] or abs(usage.output - expected[1].output) <= len(stream) // size


def test_a_json_answer_larger_than_the_window_is_read_from_its_ends() -> None:
    body = json.dumps({"model": "text-embedding-3-large", "data": [0.123456] * 50_000, "usage": {"prompt_tokens": 9}})
    tap = AnswerTap(is_stream=False)
    for start in range(0, len(body), 1000):
        tap.feed(body[start : start + 1000].encode())
    assert tap.result(est_input_tokens=1) == (TokenUsage(9, 0, 0), "text-embedding-3-large")


def test_the_tap_holds_a_bounded_window() -> None:
    tap = AnswerTap(is_stream=True)
    for _ in range(10_000):
        tap.feed(b"data: {}\n\n" * 10)
    held = len(tap._head) + sum(map(len, tap._chunks))
    assert held <= HEAD_BYTES + TAIL_BYTES + 100
    assert tap.size == 1_000_000


@pytest.mark.parametrize("size", [1, 7, 64, 5000, 10**6])
def test_events_are_counted_however_they_are_cut(size: int) -> None:
    stream = b"".join(b'data: {"n":"%b"}\n\n' % (b"x" * (number % 23)) for number in range(2000))
    tap = AnswerTap(is_stream=True)
    for start in range(0, len(stream), size):
        tap.feed(stream[start : start + size])
    assert tap.events == 2000
    assert tap.size == len(stream)


@pytest.mark.parametrize(
    ("end", "boundary"), [(b"", True), (b"data: 1\n\n", True), (b"data: 1\r\n\r\n", True), (b"data: 1\n", False)]
)
def test_event_boundary(end: bytes, boundary: bool) -> None:
    tap = AnswerTap(is_stream=True)
    if end:
        tap.feed(end)
    assert tap.at_event_boundary is boundary


@given(st.binary(max_size=400), st.booleans(), st.integers(1, 50))
def test_no_bytes_break_the_tap(body: bytes, is_stream: bool, size: int) -> None:
    tap = AnswerTap(is_stream=is_stream)
    for start in range(0, len(body), size):
        tap.feed(body[start : start + size])
    usage, _ = tap.result(est_input_tokens=3)
    assert usage.input >= 0
    assert usage.output >= 0


def test_a_deep_body_reads_as_silent() -> None:
    assert read_body(b"[" * 100_000) == EMPTY
    assert read_body(b'{"usage":' + b'{"a":' * 100_000) == EMPTY
    assert read_tail(b'"usage": {' * 1000) == EMPTY
