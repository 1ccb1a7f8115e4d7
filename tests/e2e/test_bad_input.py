"""Bad input: the error shape of the dialect it came in, a request id, and a sentence that says what to do."""

from __future__ import annotations

import json
from dataclasses import dataclass

import httpx2
import pytest

from tests.e2e.conftest import RunningGateway

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
HELLO = [{"role": "user", "content": "Hello!"}]


@dataclass(frozen=True)
class Case:
    name: str
    status: int
    says: str
    body: bytes = json.dumps({"model": "gpt-4o-mini", "messages": HELLO}).encode()
    path: str = CHAT
    headers: tuple[tuple[str, str], ...] = ()


def chat(**members: object) -> bytes:
    return json.dumps({"model": "gpt-4o-mini", "messages": HELLO, **members}).encode()


CASES = [
    Case("malformed JSON", 400, "JSON", b'{"model": "gpt-4o-mini", '),
    Case("empty body", 400, "JSON", b""),
    Case("not an object", 400, "object", b"[1, 2]"),
    Case("too deep", 400, "deep", b'{"model":"m","messages":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    Case("no model", 400, "model", b'{"messages": []}'),
    Case("a model that is no string", 400, "model", b'{"model": 7}'),
    Case("the model twice", 400, "model", b'{"model": "gpt-4o-mini", "model": "gpt-4o"}'),
    Case("not UTF-8", 400, "JSON", b'{"model": "\xff"}'),
    Case("oversized", 413, "large", b'{"model":"m","x":"' + b"x" * (33 * 1024 * 1024) + b'"}'),
    Case("unknown pool", 404, "pool", headers=(("x-llm-proxy-pool", "nowhere"),)),
    Case("unknown pool in the path", 404, "pool", path=f"/pools/nowhere{CHAT}"),
    Case("traversal in the path", 400, "path", path="/v1/../v1/%2e%2e/chat/completions"),
    Case("no such path", 404, "", path="/v1/files"),
    Case("malformed JSON to Anthropic", 400, "JSON", b"{", path=MESSAGES),
    Case("two tokens", 400, "one", headers=(("x-api-key", "other"),)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refusal(gateway: RunningGateway, token: str, case: Case) -> None:
    with httpx2.Client(base_url=gateway.base_url, headers={"authorization": f"Bearer {token}"}) as client:
        request = client.build_request("POST", case.path, content=case.body, headers=dict(case.headers))
        request.headers.setdefault("content-type", "application/json")
        answer = client.send(request)
    assert answer.status_code == case.status, answer.text[:500]
    assert case.says in answer.text
    assert "Traceback" not in answer.text
    assert answer.headers["x-llm-proxy-request-id"]
    error = answer.json()["error"]
    assert error["message"]
    assert error["type"]
    if case.path == MESSAGES:
        assert answer.json()["type"] == "error"


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("authorization", "Bearer not-a-token"),
        ("authorization", "Basic Zm9vOmJhcg=="),
        ("x-api-key", "eyJhbGciOiJub25lIn0.e30."),
        ("x-unrelated", "nothing"),
    ],
)
def test_no_good_token_is_401_with_a_challenge(gateway: RunningGateway, header: str, value: str) -> None:
    answer = httpx2.post(f"{gateway.base_url}{CHAT}", content=chat(), headers={header: value})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["error"]["message"]


def test_a_token_in_the_url_is_not_taken(gateway: RunningGateway, token: str) -> None:
    answer = httpx2.post(f"{gateway.base_url}{CHAT}?access_token={token}&api_key={token}", content=chat())
    assert answer.status_code in (400, 401)


def test_a_token_without_the_scope_is_told_which(gateway: RunningGateway) -> None:
    narrow = gateway.token("usage:read")
    answer = httpx2.post(f"{gateway.base_url}{CHAT}", content=chat(), headers={"authorization": f"Bearer {narrow}"})
    assert answer.status_code == 403
    assert "inference" in answer.text


def test_a_model_that_no_key_serves_is_said(gateway: RunningGateway, token: str) -> None:
    authorization = {"authorization": f"Bearer {token}"}
    provider = {"name": "a", "provider": "openai", "api_key": "sk-proj-" + "0" * 40, "models": ["gpt-4o"]}
    made = httpx2.post(
        f"{gateway.base_url}/api/v1/pools/import",
        json={"name": "narrow", "providers": [provider]},
        headers=authorization,
    )
    assert made.status_code == 201, made.text
    answer = httpx2.post(
        f"{gateway.base_url}/pools/narrow{CHAT}", content=chat(model="unheard-of"), headers=authorization
    )
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "unheard-of" in answer.text


def test_the_management_api_speaks_problem_documents(gateway: RunningGateway, token: str) -> None:
    for path in ("/api/v1/pools/00000000-0000-7000-8000-000000000000", "/api/v1/nothing"):
        answer = httpx2.get(f"{gateway.base_url}{path}", headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 404
        assert answer.headers["content-type"].startswith("application/problem+json")
        assert answer.json().keys() >= {"type", "title", "status", "detail", "request_id"}
