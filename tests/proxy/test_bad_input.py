"""Every way to send a wrong request, each with the answer that says how to mend it."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.proxy.intake import IntakeLimits
from tests.proxy.harness import key, multipart, pool, running_gateway, tenant

MEDIA = "unsupported_media_type"
LIMITS = IntakeLimits(max_body_bytes=2000, max_upload_bytes=400_000, body_s=0.2)
FORM = {"content-type": "multipart/form-data; boundary=x"}
TWICE = multipart("a")[:-4] + b"\r\n" + multipart("b")
BAD: dict[str, tuple[str, Any, dict[str, str], int, str]] = {
    "no body": ("/v1/chat/completions", b"", {}, 400, "invalid_body"),
    "malformed": ("/v1/chat/completions", b"{", {}, 400, "invalid_body"),
    "no object": ("/v1/chat/completions", b"[1]", {}, 400, "invalid_body"),
    "deep": ("/v1/chat/completions", b'{"a":' + b"[" * 1900, {}, 400, "invalid_body"),
    "no model": ("/v1/chat/completions", b"{}", {}, 400, "invalid_body"),
    "model twice": ("/v1/chat/completions", b'{"model":"m","model":"n"}', {}, 400, "invalid_body"),
    "oversized": ("/v1/chat/completions", b" " * 3000, {}, 413, "request_too_large"),
    "unknown model": ("/v1/chat/completions", {"model": "gpt-none"}, {}, 404, "model_not_found"),
    "unknown pool": ("/pools/none/v1/chat/completions", {"model": "m"}, {}, 404, "pool_not_found"),
    "two pools": ("/pools/main/v1/embeddings", {"model": "m"}, {"x-llm-proxy-pool": "b"}, 400, "invalid_request"),
    "empty pool": ("/pools/empty/v1/embeddings", {"model": "m"}, {}, 503, "no_usable_key"),
    "dialect not spoken": ("/v1/messages", {"model": "m"}, {}, 404, ""),
    "form for json": ("/v1/embeddings", b"x", FORM, 415, MEDIA),
    "json for form": ("/v1/audio/transcriptions", {"model": "m"}, {}, 415, MEDIA),
    "text": ("/v1/embeddings", b"x", {"content-type": "text/plain"}, 415, MEDIA),
    "compressed": ("/v1/embeddings", b"x", {"content-encoding": "gzip"}, 415, MEDIA),
    "no boundary": ("/v1/images/edits", b"x", {"content-type": "multipart/form-data"}, 400, "invalid_body"),
    "form model twice": ("/v1/images/edits", TWICE, FORM, 400, "invalid_body"),
    "form without model": ("/v1/audio/transcriptions", multipart(None), FORM, 400, "invalid_body"),
    "unknown path": ("/v1/files", {"model": "m"}, {}, 404, "unknown_path"),
    "traversal": ("/v1/models/..%2f..%2fadmin", {"model": "m"}, {}, 400, "invalid_request"),
    "key in the url": ("/v1/embeddings?key=good", {"model": "m"}, {}, 400, "invalid_request"),
    "two tokens": ("/v1/embeddings", {"model": "m"}, {"api-key": "other"}, 400, "invalid_request"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_gets_a_clear_answer(name: str) -> None:
    path, body, headers, status, code = BAD[name]
    keyed = key("a", "http://127.0.0.1:1", provider="openai_compatible", models=("m",))
    async with running_gateway(tenant(pool("main", keyed), pool("empty")), limits=LIMITS) as gateway:
        reply = await gateway.call(path, body, headers=headers, method="POST")
        assert reply.status == status, reply.body
        document = reply.json()
        error = document["error"]
        if path == "/v1/messages":
            assert document["type"] == "error"
            assert document["request_id"] == reply.headers["request-id"] == reply.headers["x-llm-proxy-request-id"]
            assert error["type"] == "not_found_error"
        else:
            assert error["code"] == code
            assert error["request_id"] == reply.headers["x-request-id"]
        assert len(error["message"]) > 20
        assert "Traceback" not in error["message"]


@pytest.mark.parametrize(
    ("token", "status", "code"),
    [(None, 401, "missing_token"), ("foreign", 401, "invalid_token"), ("narrow", 403, "not_permitted")],
)
async def test_tokens_that_do_not_suffice(token: str | None, status: int, code: str) -> None:
    async with running_gateway(tenant(pool("main", key("a", "http://127.0.0.1:1")))) as gateway:
        gateway.verifier.add("narrow", scopes=("usage:read",))
        reply = await gateway.call("/v1/chat/completions", {"model": "m"}, token=token)
        assert (reply.status, reply.json()["error"]["code"]) == (status, code)
        if status == 401:
            assert reply.headers["www-authenticate"].startswith("Bearer")
        assert len(gateway.usage.rows) == (1 if status == 403 else 0), "unknown callers are not charged"


@pytest.mark.parametrize(
    ("details", "path", "model", "status"),
    [
        ({"pools": ["main"]}, "/v1", "m", 502),
        ({"pools": ["other"]}, "/v1", "m", 403),
        ({"pools": ["other"]}, "/pools/main/v1", "m", 404),
        ({"models": ["m"]}, "/v1", "m", 502),
        ({"models": ["x*"]}, "/v1", "m", 403),
        ({"models": ["m"]}, "/v1", "alias", 502),
        ({"models": ["alias"]}, "/v1", "alias", 502),
        ({"models": ["alias"]}, "/v1", "m", 403),
        ({"regions": ["eu-*"]}, "/v1", "m", 502),
        ({"regions": ["us-*"]}, "/v1", "m", 403),
        ({"expires_at": 1}, "/v1", "m", 403),
        ({"unheard_of": 1}, "/v1", "m", 403),
    ],
)
async def test_authorization_details_are_enforced(details: dict[str, Any], path: str, model: str, status: int) -> None:
    keyed = key("a", "http://127.0.0.1:1", region="eu-1", models=("m",))
    snapshot = tenant(pool("main", keyed, settings={"model_aliases": {"alias": "m"}, "failover": False}))
    async with running_gateway(snapshot) as gateway:
        gateway.verifier.add("narrow", details=({"type": "llm_proxy", **details},))
        reply = await gateway.call(f"{path}/chat/completions", {"model": model}, token="narrow")
        assert reply.status == status, reply.body
        if status == 403 and "unheard_of" not in details:
            assert next(iter(details)) in reply.json()["error"]["message"]


async def test_a_suspended_tenant_is_refused() -> None:
    async with running_gateway(tenant(status="suspended")) as gateway:
        reply = await gateway.call("/v1/chat/completions", {"model": "m"})
        assert (reply.status, reply.json()["error"]["code"]) == (403, "tenant_suspended")


async def test_a_body_that_never_ends_is_given_up() -> None:
    async with running_gateway(tenant(pool("main", key("a", "http://127.0.0.1:1"))), limits=LIMITS) as gateway:
        raw = b"POST /v1/embeddings HTTP/1.1\r\nhost: g\r\nx-api-key: good\r\ncontent-length: 100\r\n\r\n{"
        assert (await gateway.raw(raw)).startswith(b"HTTP/1.1 408")
        assert (await gateway.row()).outcome == "request_timeout"


async def test_problem_documents_for_who_asks_for_them() -> None:
    async with running_gateway(tenant()) as gateway:
        reply = await gateway.call("/v1/nothing", headers={"accept": "application/problem+json"})
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json()["status"] == 404
        assert reply.json()["request_id"]


async def test_a_narrowed_token_cannot_hide_its_model_behind_a_file() -> None:
    keyed = key("a", "http://127.0.0.1:1")
    async with running_gateway(tenant(pool("main", keyed, settings={"failover": False}))) as gateway:
        gateway.verifier.add("narrow", details=({"type": "llm_proxy", "models": ["whisper-1"]},))
        hidden = multipart(None)[:-7] + b"a" * 300_000 + b"\r\n" + multipart("gpt-4o")
        assert (await gateway.call("/v1/images/edits", hidden, headers=FORM, token="narrow")).status == 403
        unnamed = await gateway.call("/v1/images/edits", multipart(None), headers=FORM, token="narrow")
        assert unnamed.status == 403
        named = await gateway.call("/v1/images/edits", multipart("whisper-1"), headers=FORM, token="narrow")
        assert named.status == 502, "allowed, and then there is no provider"
