"""Asking a running gateway what became of a request, and why."""

from __future__ import annotations

import time
from typing import Any

import httpx2

from tests.e2e.conftest import RunningGateway


def read(gateway: RunningGateway, token: str, path: str) -> dict[str, Any]:
    give_up = time.monotonic() + 15
    while True:
        answer = httpx2.get(f"{gateway.base_url}/api/v1/requests/{path}", headers={"authorization": f"Bearer {token}"})
        if answer.status_code == 200 or time.monotonic() > give_up:
            found: dict[str, Any] = answer.raise_for_status().json()
            return found
        assert answer.json()["code"] == "not_found", gateway.output()[-3000:]
        time.sleep(0.1)


def test_a_request_is_reported_and_explained(gateway: RunningGateway, token: str) -> None:
    answer = httpx2.post(
        f"{gateway.base_url}/v1/chat/completions",
        json={"model": gateway.model, "messages": [{"role": "user", "content": "Hello!"}]},
        headers={"authorization": f"Bearer {token}", "x-llm-proxy-explain": "true"},
    )
    assert answer.status_code == 200
    request_id = answer.headers["x-llm-proxy-request-id"]
    report = read(gateway, token, request_id)
    assert (report["status"], report["model"], report["attempts"]) == (200, gateway.model, 1)
    assert report["residency"] == {"allowed": None, "attempts": [report["region"]], "kept": True}
    explanation = read(gateway, token, f"{request_id}/explanation")
    (pool,) = explanation["pools"]
    assert pool["pool"] == answer.headers["x-llm-proxy-pool"]
    assert pool["tried"][0]["key"] == answer.headers["x-llm-proxy-key"]
    plain = httpx2.get(
        f"{gateway.base_url}/api/v1/requests/{request_id}",
        headers={"authorization": f"Bearer {gateway.token('inference')}"},
    )
    assert plain.status_code == 403
