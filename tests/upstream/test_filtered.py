"""Answers with a good status that a content filter ended: whole bodies, beginnings of streams, anything at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.filtered import MAX_BODY_BYTES, is_filtered


def choice(finish: str | None, **more: Any) -> Any:
    return {"choices": [{"index": 0, "finish_reason": finish, **more}]}


BODIES: list[tuple[str, Any, bool]] = [
    ("chat", choice("content_filter", message={"content": "I"}), True),
    ("chat that stopped", choice("stop", message={"content": "content_filter"}), False),
    ("one of two", {"choices": [*choice("stop")["choices"], *choice("content_filter")["choices"]]}, False),
    ("both", {"choices": choice("content_filter")["choices"] * 2}, True),
    ("responses", {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}, "output": []}, True),
    ("responses, too long", {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, False),
    ("anthropic", {"type": "message", "content": [], "stop_reason": "refusal"}, True),
    ("anthropic, ended", {"type": "message", "content": [{"text": "refusal"}], "stop_reason": "end_turn"}, False),
    ("gemini, the prompt", {"promptFeedback": {"blockReason": "SAFETY"}}, True),
    ("gemini, the answer", {"candidates": [{"finishReason": "PROHIBITED_CONTENT"}]}, True),
    ("gemini, ended", {"candidates": [{"finishReason": "STOP", "content": {"parts": [{"text": "SAFETY"}]}}]}, False),
    ("embeddings", {"data": [{"embedding": [0.1]}], "note": "refusal"}, False),
    ("no object", ["content_filter"], False),
]


@pytest.mark.parametrize(("body", "expected"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
def test_a_whole_body(body: Any, expected: bool) -> None:
    written = json.dumps(body).encode()
    assert is_filtered(written, True, is_stream=False) is expected
    assert is_filtered(written, False, is_stream=False) is None, "it may go on"


ROLE = choice(None, delta={"role": "assistant", "content": ""})
PROMPT = {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
STREAMS: list[tuple[str, list[Any], bool | None]] = [
    ("at once", [choice("content_filter", delta={})], True),
    ("after the role", [PROMPT, ROLE, choice("content_filter", delta={})], True),
    ("after content", [ROLE, choice(None, delta={"content": "I"}), choice("content_filter", delta={})], False),
    ("a tool call", [ROLE, choice(None, delta={"tool_calls": [{"index": 0}]})], False),
    ("nothing yet", [PROMPT, ROLE], None),
    ("an end", [ROLE, choice("stop", delta={})], False),
    (
        "responses",
        [
            {"type": "response.created", "response": {"incomplete_details": None}},
            {"type": "response.incomplete", "response": {"incomplete_details": {"reason": "content_filter"}}},
        ],
        True,
    ),
    ("responses, content", [{"type": "response.created"}, {"type": "response.output_text.delta", "delta": "I"}], False),
    (
        "anthropic",
        [{"type": "message_start", "message": {}}, {"type": "ping"},
         {"type": "message_delta", "delta": {"stop_reason": "refusal"}}],
        True,
    ),
    (
        "anthropic, content",
        [{"type": "message_start"}, {"type": "content_block_start"},
         {"type": "content_block_delta", "delta": {"text": "I"}}],
        False,
    ),
    ("gemini", [{"candidates": [{"finishReason": "SAFETY"}]}], True),
    ("gemini, content", [{"candidates": [{"content": {"parts": [{"text": "I"}]}}]}], False),
    ("no JSON", ["x"], False),
]  # fmt: skip


@pytest.mark.parametrize(("events", "expected"), [row[1:] for row in STREAMS], ids=[row[0] for row in STREAMS])
def test_a_stream_up_to_its_first_content(events: list[Any], expected: bool | None) -> None:
    written = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events)
    assert is_filtered(written, False, is_stream=True) is expected
    assert is_filtered(b": comment\n\n" + written, True, is_stream=True) is (expected or False)


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_no_bytes_break_it_or_hold_it_up(body: bytes, ended: bool, is_stream: bool) -> None:
    verdict = is_filtered(body, ended, is_stream=is_stream)
    assert verdict is not None or not ended
    assert is_filtered(body + b" " * MAX_BODY_BYTES, False, is_stream=is_stream) is not None
