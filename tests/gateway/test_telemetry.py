"""Logs are one object a line and carry no credential; metrics render; the three health paths answer."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest

from auth.secret import Secret
from gateway.health import Health
from gateway.telemetry import HumanLines, JsonLines, Metrics, new_request_id, redact

JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("secret", "around"),
    [
        ("hunter2", "postgresql://gateway:hunter2@db:5432/x"),
        ("hunter2", "postgresql+asyncpg://gateway:hunter2@db/x"),
        (JWT, f"token {JWT} refused"),
        ("sk-proj-abcdefghij0123456789", "upstream said sk-proj-abcdefghij0123456789 is invalid"),
        ("sk-ant-api03-abcdefghij0123456789", "x-api-key: sk-ant-api03-abcdefghij0123456789"),
        ("AIzaSyA1234567890abcdef", "key=AIzaSyA1234567890abcdef"),
        ("gsk_abc123def456ghi789", "gsk_abc123def456ghi789"),
        ("lps_0123456789abcdefghij", "secret lps_0123456789abcdefghij"),
        ("YWNtZTpzZWNyZXQ=", "Authorization: Basic YWNtZTpzZWNyZXQ="),
    ],
)
def test_what_looks_like_a_credential_is_blanked(secret: str, around: str) -> None:
    assert secret not in redact(around)


@pytest.mark.parametrize("text", ["pool main is full", "asking pk", "req_0123456789abcdef", "10 tokens a second"])
def test_ordinary_words_stay(text: str) -> None:
    assert redact(text) == text


def _logged(formatter: logging.Formatter, message: str, **extra: Any) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.getLogger("tests.telemetry")
    logger.setLevel(logging.INFO)
    logger.handlers = [handler]
    logger.info(message, extra=extra)
    try:
        raise ValueError(f"bad {JWT}")
    except ValueError:
        logger.exception("failed")
    return stream.getvalue()


def test_json_lines_carry_extras_and_no_secret() -> None:
    text = _logged(JsonLines(), "asked", pool="main", key=Secret("sk-very-secret-1234567890"))
    first, second = (json.loads(line) for line in text.splitlines())
    assert (first["message"], first["pool"], first["level"]) == ("asked", "main", "info")
    assert "ValueError" in second["traceback"]
    assert JWT not in text
    assert "very-secret" not in text


def test_human_lines_carry_extras() -> None:
    text = _logged(HumanLines(), "asked", pool="main")
    assert "asked  pool=main" in text
    assert JWT not in text


def test_request_ids_have_one_form() -> None:
    assert new_request_id() != new_request_id()
    assert len(new_request_id()) == len("req_") + 32


async def _get(health: Health, path: str, method: str = "GET") -> tuple[int, bytes]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> None:
        raise AssertionError

    await health({"type": "http", "method": method, "path": path}, receive, send)
    return sent[0]["status"], sent[1]["body"]


async def test_health() -> None:
    metrics = Metrics()
    metrics.watch_gauge("llm_proxy_buffered", "Rows waiting.", lambda: 7)
    health = Health(metrics)
    state: dict[str, str | None] = {"snapshots": "Nothing is loaded yet.", "database": None}
    health.require("snapshots", lambda: state["snapshots"])
    health.note("database", lambda: state["database"])
    assert await _get(health, "/livez") == (200, b'{"status":"alive"}')
    status, body = await _get(health, "/readyz")
    assert status == 503
    assert b"Nothing is loaded" in body
    state.update(snapshots=None, database="It does not answer.")
    status, body = await _get(health, "/readyz")
    assert status == 200
    assert b"does not answer" in body
    status, body = await _get(health, "/metrics")
    assert b"llm_proxy_buffered 7.0" in body
    assert (await _get(health, "/readyz", "POST"))[0] == 405
    assert (await _get(health, "/readyz", "HEAD"))[1] == b""
    health.drain()
    assert (await _get(health, "/readyz"))[0] == 503
    assert (await _get(health, "/livez"))[0] == 200
