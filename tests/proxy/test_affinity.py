"""Which requests belong together."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from gateway.upstream.affinity import affinity_of

SYSTEM = {"role": "system", "content": "be kind"}
LONG = {"role": "system", "content": "x" * 5000}
VERY_LONG = {"role": "system", "content": "é" * 50_000}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def of(**body: Any) -> str | None:
    return affinity_of(json.dumps({"model": "m", **body}).encode())


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "turns of a conversation": (
        {"messages": [SYSTEM, user("hi")]},
        {"messages": [SYSTEM, user("hi"), {"role": "assistant", "content": "yes?"}, user("well")]},
    ),
    "a shared prompt longer than what is looked at": (
        {"messages": [VERY_LONG, user("a")]},
        {"messages": [VERY_LONG, user("b")]},
    ),
    "many turns before the first of the user": (
        {"messages": [SYSTEM] * 500 + [user("a")]},
        {"messages": [SYSTEM] * 500 + [user("b")]},
    ),
    "tokens": ({"prompt": [*range(5000), 1]}, {"prompt": [*range(5000), 2]}),
    "a shared long prompt": ({"messages": [LONG, user("a")]}, {"messages": [LONG, user("b")]}),
    "anthropic, a shared long prompt": (
        {"system": "x" * 5000, "messages": [user("a")]},
        {"system": "x" * 5000, "messages": [user("b")]},
    ),
    "the caller says so": (
        {"prompt_cache_key": "k", "messages": [user("a")]},
        {"prompt_cache_key": "k", "messages": [user("b")]},
    ),
    "other parameters": ({"input": "hi", "temperature": 1}, {"input": "hi", "max_output_tokens": 5}),
    "gemini": (
        {"contents": [{"role": "user", "parts": [{"text": "a"}]}]},
        {"contents": [{"role": "user", "parts": [{"text": "a"}]}, {"role": "model", "parts": []}]},
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_what_belongs_together(name: str) -> None:
    first, second = SAME[name]
    assert of(**first) == of(**second) is not None


def test_what_does_not() -> None:
    bodies: list[dict[str, Any]] = [
        {"messages": [SYSTEM, user("a")]},
        {"messages": [SYSTEM, user("b")]},
        {"messages": [user("a")]},
        {"prompt": "a"},
        {"input": "b"},
        {"prompt_cache_key": "k"},
    ]
    assert len({of(**body) for body in bodies}) == len(bodies)


@pytest.mark.parametrize("body", [b"{}", b"", b"[", b'{"messages": [', b'{"prompt_cache_key": "\\ud800"}'])
def test_what_has_no_prompt(body: bytes) -> None:
    assert affinity_of(body) is None


@pytest.mark.parametrize("member", ["messages", "prompt", "system", "prompt_cache_key"])
def test_nothing_is_made_of_a_long_body(member: str) -> None:
    body = b'{"%b":[' % member.encode() + b"[]," * 700_000 + b"[]]}"
    tracemalloc.start()
    try:
        affinity_of(body)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
