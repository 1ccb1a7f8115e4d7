"""Prompts by their bytes: text counts in full, what comes as base64 does not."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest

from gateway.balancing.prompt_size import SMALL_BYTES, prompt_tokens
from tests.proxy.harness import key, pool, running_gateway, tenant
from tests.proxy.scripted import Exchange, scripted_upstream

PHOTO = base64.b64encode(random.Random(7).randbytes(1_200_000)).decode()
TEXT = "A picture says more than a thousand words. " * 1000
IMAGES: dict[str, Any] = {
    "openai": {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{PHOTO}"}},
    "anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": PHOTO}},
    "gemini": {"inlineData": {"mimeType": "image/jpeg", "data": PHOTO}},
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_no_text(name: str) -> None:
    body = json.dumps({"model": "m", "content": [{"type": "text", "text": "What is it?"}, IMAGES[name]]}).encode()
    assert 1_000 < prompt_tokens(body) < 10_000
    assert prompt_tokens(body + TEXT.encode()) - prompt_tokens(body) == pytest.approx(len(TEXT) / 4, abs=600)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(TEXT, id="prose"),
        pytest.param("日本語の文章には空白がありません。" * 2000, id="without blanks"),
        pytest.param("\n".join(f"{number}\t{number}" for number in range(9000)), id="a table"),
        pytest.param("x" * 10, id="small"),
    ],
)
@pytest.mark.parametrize("is_ascii", [True, False])
def test_text_counts_in_full(text: str, is_ascii: bool) -> None:
    body = json.dumps({"model": "m", "content": text}, ensure_ascii=is_ascii).encode()
    assert prompt_tokens(body) == len(body) // 4 + 1


def test_tokens_that_were_counted_already_are_no_image() -> None:
    body = json.dumps({"model": "m", "input": list(range(20_000))}, separators=(",", ":")).encode()
    assert prompt_tokens(body) == len(body) // 4 + 1


def test_each_image_counts() -> None:
    several = [IMAGES["anthropic"] for _ in range(4)]
    one, four = (prompt_tokens(json.dumps({"content": content}).encode()) for content in (several[:1], several))
    assert 3 * one < four < 5 * one


def test_small_bodies_are_not_looked_through() -> None:
    body = json.dumps({"data": "A" * (SMALL_BYTES - 20)}).encode()
    assert prompt_tokens(body) == len(body) // 4 + 1


async def test_an_image_fits_where_its_bytes_as_text_would_not() -> None:
    async def script(exchange: Exchange) -> None:
        body = b'{"model": "gpt-4o", "usage": {"prompt_tokens": 1118, "completion_tokens": 9}}'
        await exchange.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )

    message = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGES["openai"]]}
    async with scripted_upstream(script) as upstream:
        one = key("a", upstream.base_url, provider="openai")
        async with running_gateway(tenant(pool("main", one, limits={"tpm": 30_000}))) as gateway:
            gateway.verifier.add("narrow", details=({"type": "llm_proxy", "tpm": 30_000},))
            for token in ("good", "narrow"):
                reply = await gateway.call(
                    "/v1/chat/completions", {"model": "gpt-4o", "max_tokens": 20, "messages": [message]}, token=token
                )
                assert reply.status == 200, reply.body
