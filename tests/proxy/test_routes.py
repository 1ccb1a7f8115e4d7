"""The allow-list of paths: what is served, and an attack corpus of what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.routes import Route, Unroutable, is_inference, match


@pytest.mark.parametrize(
    ("method", "path", "name", "pool", "model"),
    [
        ("POST", "/v1/chat/completions", "chat.completions", None, None),
        ("POST", "/v1/completions", "completions", None, None),
        ("POST", "/v1/embeddings", "embeddings", None, None),
        ("POST", "/v1/responses", "responses", None, None),
        ("POST", "/v1/moderations", "moderations", None, None),
        ("POST", "/v1/images/generations", "images.generations", None, None),
        ("POST", "/v1/images/edits", "images.edits", None, None),
        ("POST", "/v1/audio/transcriptions", "audio.transcriptions", None, None),
        ("POST", "/v1/audio/speech", "audio.speech", None, None),
        ("GET", "/v1/models", "models.list", None, None),
        ("GET", "/v1/models/gpt-4o", "models.get", None, "gpt-4o"),
        ("GET", "/v1/models/org%2Fmodel:free", "models.get", None, "org/model:free"),
        ("POST", "/v1/messages", "messages", None, None),
        ("POST", "/v1/messages/count_tokens", "messages.count_tokens", None, None),
        ("POST", "/pools/main/v1/messages", "messages", "main", None),
        ("POST", "/pools/eu-prod.2/v1/chat/completions", "chat.completions", "eu-prod.2", None),
        ("POST", "/v1beta/models/gemini-2.5-pro:generateContent", "generateContent", None, "gemini-2.5-pro"),
        ("POST", "/v1beta/models/g%3AstreamGenerateContent", "streamGenerateContent", None, "g"),
        ("POST", "/pools/p/v1beta/models/g:countTokens", "countTokens", "p", "g"),
        ("POST", "/openai/deployments/my-gpt/chat/completions", "chat.completions", None, "my-gpt"),
        ("POST", "/openai/v1/responses", "responses", None, None),
    ],
)
def test_served(method: str, path: str, name: str, pool: str | None, model: str | None) -> None:
    found = match(method, path.encode())
    assert isinstance(found, Route)
    assert (found.operation.name, found.pool, found.model) == (name, pool, model)
    assert is_inference(path.encode())
    assert match(method, path.encode()) is found, "the second look-up comes from the cache"


def test_the_version_header_settles_the_dialect_of_models() -> None:
    found = match("GET", b"/v1/models", is_anthropic=True)
    assert isinstance(found, Route)
    assert found.operation.dialect == "anthropic"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/files", 404),
        ("/v1/chat/completions/", 404),
        ("/v1//chat/completions", 400),
        ("/v1/../api/v1/tenants", 400),
        ("/v1/./chat/completions", 400),
        ("/v1/chat/completions/..", 400),
        ("/v1/%2e%2e/api", 400),
        ("/v1/chat%2fcompletions", 400),
        ("/v1/models/..%2f..%2ffiles", 400),
        ("/v1/models/a%2f..%2fb", 400),
        ("/v1/models/%2e%2e", 400),
        ("/v1/models/a%00b", 400),
        ("/v1/models/a%0d%0ax", 400),
        ("/v1/models/a%252fb", 400),
        ("/v1/chat\\completions", 400),
        ("/v1/chat/completions;a=b", 400),
        ("/v1/chat/completions#x", 400),
        ("http://evil.example/v1/chat/completions", 400),
        ("//evil.example/v1/chat/completions", 400),
        ("/v1@evil.example/chat/completions", 404),
        ("/pools//v1/chat/completions", 400),
        ("/pools/a b/v1/chat/completions", 400),
        ("/pools/..%2f/v1/chat/completions", 400),
        ("/pools/main/api/v1/keys", 404),
        ("/pools/main/pools/other/v1/messages", 404),
        ("/v1beta/models/g:deleteEverything", 405),
        ("/v1beta/models/../files:generateContent", 400),
        ("/openai/deployments/a/b/chat/completions", 404),
        ("/openai/deployments/a/messages", 404),
        ("/V1/chat/completions", 404),
        ("/v1/chat/comple\xe4tions", 400),
        ("/v1", 404),
        ("", 400),
    ],
)
def test_refused(path: str, status: int) -> None:
    found = match("POST", path.encode("latin-1"))
    assert isinstance(found, Unroutable)
    assert found.status == status
    assert found.sentence


def test_wrong_method_names_the_right_one() -> None:
    found = match("GET", b"/v1/chat/completions")
    assert isinstance(found, Unroutable)
    assert (found.status, found.allow) == (405, "POST")


@given(st.binary(max_size=60).map(lambda tail: b"/v1/models/" + tail))
def test_whatever_is_served_holds_no_traversal(path: bytes) -> None:
    found = match("GET", path)
    if isinstance(found, Route) and found.model is not None:
        assert ".." not in found.model.split("/")
        assert found.model.isascii()
        assert found.model.isprintable()
        assert not found.model.startswith("/")
