"""The provider table: addresses, paths and credentials as each provider documents them."""

from __future__ import annotations

import pytest

from auth.errors import Invalid
from auth.secret import Secret
from gateway.balancing.hints import HINT_STYLES
from gateway.upstream.guard import EgressPolicy, UnsafeUrl
from gateway.upstream.providers import DIALECT_ROOTS, PROVIDERS, resolve, target_for

PUBLIC = EgressPolicy()
CHAT = "/v1/chat/completions"
GEMINI = "/v1beta/models/gemini-3-flash:streamGenerateContent?alt=sse"


@pytest.mark.parametrize(
    ("provider", "base_url", "region", "dialect", "path", "url"),
    [
        ("openai", None, None, "openai", CHAT, "https://api.openai.com/v1/chat/completions"),
        ("openai", "https://eu.api.openai.com/v1", None, "openai", CHAT, "https://eu.api.openai.com/v1/chat/completions"),
        ("azure", "https://r.openai.azure.com", None, "openai", CHAT, "https://r.openai.azure.com/openai/v1/chat/completions"),
        ("azure", "https://r.openai.azure.com/openai/v1/", None, "openai", CHAT,
         "https://r.openai.azure.com/openai/v1/chat/completions"),
        ("azure", "https://r.openai.azure.com/openai/deployments/gpt", None, "openai", CHAT,
         "https://r.openai.azure.com/openai/deployments/gpt/chat/completions?api-version=2024-10-21"),
        ("azure", "https://r.openai.azure.com/openai/deployments/gpt?api-version=2025-01-01-preview", None,
         "openai", CHAT,
         "https://r.openai.azure.com/openai/deployments/gpt/chat/completions?api-version=2025-01-01-preview"),
        ("anthropic", None, None, "anthropic", "/v1/messages", "https://api.anthropic.com/v1/messages"),
        ("anthropic", None, None, "openai", CHAT, "https://api.anthropic.com/v1/chat/completions"),
        ("gemini", None, None, "gemini", GEMINI,
         "https://generativelanguage.googleapis.com/v1beta/models/gemini-3-flash:streamGenerateContent?alt=sse"),
        ("gemini", None, None, "openai", CHAT,
         "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions"),
        ("mistral", None, None, "openai", CHAT, "https://api.mistral.ai/v1/chat/completions"),
        ("groq", None, None, "openai", CHAT, "https://api.groq.com/openai/v1/chat/completions"),
        ("openrouter", None, None, "openai", CHAT, "https://openrouter.ai/api/v1/chat/completions"),
        ("bedrock", None, "us-west-2", "openai", CHAT,
         "https://bedrock-runtime.us-west-2.amazonaws.com/openai/v1/chat/completions"),
        ("vllm", "https://gpu.example.com", None, "openai", CHAT, "https://gpu.example.com/v1/chat/completions"),
        ("openai_compatible", "https://h.example.com/api/paas/v4", None, "openai", CHAT,
         "https://h.example.com/api/paas/v4/chat/completions"),
        ("simulated", "https://sim.example.com", None, "anthropic", "/v1/messages", "https://sim.example.com/v1/messages"),
        ("simulated", "https://sim.example.com", None, "gemini", "/v1beta/models/g:generateContent",
         "https://sim.example.com/v1beta/models/g:generateContent"),
    ],
)  # fmt: skip
def test_where_requests_go(  # noqa: PLR0917 -- the columns of the table
    provider: str, base_url: str | None, region: str | None, dialect: str, path: str, url: str
) -> None:
    origin, target = target_for(provider, base_url, dialect, path, policy=PUBLIC, region=region)
    assert f"{origin}{target.decode()}" == url


@pytest.mark.parametrize(
    ("provider", "base_url", "dialect", "header"),
    [
        ("openai", None, "openai", b"authorization: Bearer sk-1\r\n"),
        ("azure", "https://r.openai.azure.com", "openai", b"api-key: sk-1\r\n"),
        ("anthropic", None, "anthropic", b"x-api-key: sk-1\r\n"),
        ("anthropic", None, "openai", b"authorization: Bearer sk-1\r\n"),
        ("gemini", None, "gemini", b"x-goog-api-key: sk-1\r\n"),
        ("gemini", None, "openai", b"authorization: Bearer sk-1\r\n"),
    ],
)
def test_how_the_key_travels(provider: str, base_url: str | None, dialect: str, header: bytes) -> None:
    target = resolve(provider, dialect, base_url=base_url, policy=PUBLIC)
    assert target.credential_block(Secret("sk-1 ")) == header


@pytest.mark.parametrize("key", ["sk\r\nx: y", "sk\n", "sk\0", "", " ", "clé"])
def test_a_key_that_would_break_the_header_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        resolve("openai", "openai", policy=PUBLIC).credential_block(Secret(key))
    assert not key.strip() or key not in str(caught.value)


@pytest.mark.parametrize(
    ("provider", "dialect", "base_url", "region", "says"),
    [
        ("nope", "openai", None, None, "unknown"),
        ("openai", "gemini", None, None, "does not speak"),
        ("azure", "openai", None, None, "needs base_url"),
        ("vllm", "openai", None, None, "needs base_url"),
        ("bedrock", "openai", None, None, "needs region"),
        ("bedrock", "openai", None, "evil.com/", "needs region"),
        ("bedrock", "openai", None, "a@evil.com#", "needs region"),
    ],
)
def test_what_is_missing_is_said(
    provider: str, dialect: str, base_url: str | None, region: str | None, says: str
) -> None:
    with pytest.raises(Invalid, match=says) as caught:
        resolve(provider, dialect, base_url=base_url, region=region, policy=PUBLIC)
    assert caught.value.hint


def test_base_urls_pass_the_guard() -> None:
    with pytest.raises(UnsafeUrl):
        resolve("vllm", "openai", base_url="http://127.0.0.1:8000", policy=PUBLIC)
    assert resolve("vllm", "openai", base_url="http://127.0.0.1:8000", policy=EgressPolicy(allow_private=True))


@pytest.mark.parametrize("path", ["http://evil/x", "//evil/x", "/admin", "chat/completions", "/v1", "/v1beta/x"])
def test_a_path_outside_the_dialect_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="begin with"):
        resolve("openai", "openai", policy=PUBLIC).path(path)


def test_every_row_is_usable() -> None:
    for name, provider in PROVIDERS.items():
        assert provider.name == name
        assert provider.hint_style in HINT_STYLES
        for dialect in provider.dialects:
            assert dialect in DIALECT_ROOTS
            base_url = "https://host.example.com" if provider.needs_base_url else None
            assert resolve(name, dialect, base_url=base_url, region="eu-west-1", policy=PUBLIC)
