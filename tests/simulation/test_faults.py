"""Faults on the wire: what a client that reads raw HTTP sees of each."""

from __future__ import annotations

import http.client
import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.simulation.faults import Fault, FaultKind, FaultPlan, parse_fault
from tests.fakes.provider import RunningProvider

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "echo: one two three four"}]}
MESSAGE = {"model": "claude-sonnet-5", "max_tokens": 50, "messages": CHAT["messages"]}


_opened: list[Any] = []


@pytest.fixture(autouse=True)
def _connections_are_closed() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def call(
    provider: RunningProvider,
    path: str = "/v1/chat/completions",
    body: Any = CHAT,
    *,
    key: str = "sim-key-open",
    fault: str = "",
    method: str = "POST",
    timeout_s: float = 10,
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(provider.host, provider.port, timeout=timeout_s)
    _opened.append(connection)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    if fault:
        headers["x-sim-fault"] = fault
    connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body), headers)
    answer = connection.getresponse()
    _opened.append(answer)
    return answer


def events(text: bytes) -> list[str]:
    return [line[6:] for line in text.decode().split("\n") if line.startswith("data: ")]


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503, 529])
def test_status(provider: RunningProvider, status: int) -> None:
    answer = call(provider, fault=json.dumps({"kind": "status", "status": status, "retry_after_s": 7}))
    assert answer.status == status
    assert answer.headers["retry-after"] == "7"
    assert set(json.loads(answer.read())["error"]) == {"message", "type", "param", "code"}
    assert provider.use("open").by_status == {status: 1}


def test_anthropic_overload_has_its_own_shape(provider: RunningProvider) -> None:
    answer = call(provider, "/v1/messages", MESSAGE, fault="status:529")
    assert json.loads(answer.read())["error"]["type"] == "overloaded_error"


def test_reset(provider: RunningProvider) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        call(provider, fault="reset")


def test_hang_says_nothing_and_ends_with_the_connection(provider: RunningProvider) -> None:
    with pytest.raises(TimeoutError):
        call(provider, fault="hang", timeout_s=0.05)
    with pytest.raises(http.client.RemoteDisconnected):
        call(provider, fault="hang:0.01")


def test_delay_answers_in_the_end(provider: RunningProvider) -> None:
    assert call(provider, fault="delay:0.01").status == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_cut_stream_ends_without_its_last_chunk(provider: RunningProvider, path: str) -> None:
    body = {**CHAT, "input": "hi", "max_tokens": 50, "stream": True, "model": "sim-1"}
    answer = call(provider, path, body, fault="cut:5")
    with pytest.raises(http.client.IncompleteRead) as caught:
        answer.read()
    assert len(events(caught.value.partial)) == 5
    assert "[DONE]" not in events(caught.value.partial)


def test_cut_body_is_shorter_than_announced(provider: RunningProvider) -> None:
    answer = call(provider, fault="cut")
    with pytest.raises(http.client.IncompleteRead) as caught:
        answer.read()
    assert 0 < len(caught.value.partial) < int(answer.headers["content-length"])


def test_short_body_is_whole_json_with_a_wrong_length(provider: RunningProvider) -> None:
    answer = call(provider, fault="short_body")
    with pytest.raises(http.client.IncompleteRead) as caught:
        answer.read()
    assert json.loads(caught.value.partial)["object"] == "chat.completion"


def test_stall_keeps_the_connection(provider: RunningProvider) -> None:
    answer = call(provider, body={**CHAT, "stream": True}, fault="stall:2", timeout_s=0.2)
    assert answer.status == 200
    with pytest.raises(TimeoutError):
        answer.read()


def test_slow_body_arrives_whole(provider: RunningProvider) -> None:
    assert json.loads(call(provider, fault="slow:0").read())["object"] == "chat.completion"
    answer = call(provider, body={**CHAT, "stream": True}, fault="slow:0.001")
    assert events(answer.read())[-1] == "[DONE]"


def test_stream_error_comes_before_the_first_content(provider: RunningProvider) -> None:
    said = events(call(provider, body={**CHAT, "stream": True}, fault="stream_error").read())
    assert [list(json.loads(event)) for event in said][-1] == ["error"]
    assert not any(json.loads(event).get("choices", [{}])[0].get("delta", {}).get("content") for event in said[:-1])


def test_anthropic_stream_error_comes_before_the_first_content(provider: RunningProvider) -> None:
    said = events(call(provider, "/v1/messages", {**MESSAGE, "stream": True}, fault="stream_error").read())
    assert [json.loads(event)["type"] for event in said] == ["message_start", "content_block_start", "ping", "error"]


def test_stream_error_without_a_stream_is_a_500(provider: RunningProvider) -> None:
    assert call(provider, fault="stream_error").status == 500


def test_malformed_is_no_json(provider: RunningProvider) -> None:
    answer = call(provider, fault="malformed")
    assert answer.status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.read())


def test_faults_of_a_key_end_after_their_times(provider: RunningProvider) -> None:
    provider.fault("open", Fault(kind=FaultKind.STATUS, status=503, times=2))
    assert [call(provider).status for _ in range(3)] == [503, 503, 200]
    assert provider.use("open").faulted == 2


def test_a_caller_that_leaves_is_noticed(provider: RunningProvider) -> None:
    body = json.dumps({**CHAT, "stream": True}).encode()
    provider.fault("open", Fault(kind=FaultKind.STALL, after=2))
    with socket.create_connection((provider.host, provider.port), timeout=5) as raw:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sim-key-open\r\n"
        head += f"content-length: {len(body)}\r\n\r\n"
        raw.sendall(head.encode() + body)
        assert b"200" in raw.recv(100)
        assert provider.use("open").in_flight == 1
    # The next answer comes on the same loop, after the closed connection was seen.
    provider.fault("open")
    for _ in range(200):
        call(provider, "/v1/models", b"", method="GET")
        if provider.use("open").in_flight == 0:
            break
    assert provider.use("open").in_flight == 0


def test_bad_bodies_get_the_error_shape(provider: RunningProvider) -> None:
    for body in (b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": 5}', b'{"model":"gpt-4o","messages":[1]}'):
        answer = call(provider, body=body)
        assert answer.status == 400
        assert json.loads(answer.read())["error"]["type"] == "invalid_request_error"
    assert call(provider, "/v1/nothing").status == 404
    assert call(provider, fault="nonsense").status == 400


def test_gemini_native(provider: RunningProvider) -> None:
    body = {"contents": [{"parts": [{"text": "echo: héllo"}]}]}
    path = "/v1beta/models/gemini-2.5-flash"
    whole = json.loads(call(provider, f"{path}:generateContent", body).read())
    assert whole["candidates"][0]["content"]["parts"][0]["text"] == "héllo"
    said = events(call(provider, f"{path}:streamGenerateContent?alt=sse", body).read())
    parts = [json.loads(event)["candidates"][0] for event in said]
    assert "".join(part["content"]["parts"][0]["text"] for part in parts) == "héllo"
    assert parts[-1]["finishReason"] == "STOP"
    counted = json.loads(call(provider, f"{path}:countTokens", body).read())
    assert counted["totalTokens"] > 0


def admin(provider: RunningProvider, method: str, path: str, body: Any = b"") -> tuple[int, Any]:
    answer = call(provider, f"/_sim/{path}", body, method=method)
    return answer.status, json.loads(answer.read())


def test_admin_adds_breaks_revokes_and_resets(provider: RunningProvider) -> None:
    assert admin(provider, "PUT", "keys/extra", {"secret": "sim-key-extra", "limits": {"rpm": 10}})[0] == 200
    assert call(provider, key="sim-key-extra").status == 200
    assert admin(provider, "PUT", "keys/extra/faults", [{"kind": "status", "status": 500}])[0] == 200
    assert call(provider, key="sim-key-extra").status == 500
    assert admin(provider, "DELETE", "keys/extra/faults")[0] == 200
    assert admin(provider, "POST", "keys/extra/revoke")[0] == 200
    assert call(provider, key="sim-key-extra").status == 401
    assert admin(provider, "POST", "keys/extra/restore")[0] == 200
    assert admin(provider, "PUT", "quotas/org-extra", {"rpm": 5})[0] == 200
    told = call(provider, key="sim-key-extra").headers
    assert told["x-ratelimit-limit-requests"] == "5"
    state = admin(provider, "GET", "state")[1]
    assert state["keys"]["extra"]["by_status"] == {"200": 2, "401": 0, "500": 1} | {"401": 1}
    assert "sim-key" not in json.dumps(state)
    log = admin(provider, "GET", "requests")[1]
    assert log[-1]["key"] == "extra"
    assert "authorization" in log[-1]["headers"]
    assert "sim-key" not in json.dumps(log)
    assert admin(provider, "POST", "reset")[0] == 200
    assert admin(provider, "GET", "state")[1]["keys"]["extra"]["requests"] == 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "keys/new", {"secret": "sim-key-open"}, 422),
        ("PUT", "keys/new", {"secret": ""}, 422),
        ("PUT", "keys/open/faults", [{"kind": "nothing"}], 422),
        ("PUT", "keys/open/faults", b"{", 422),
        ("POST", "keys/nobody/revoke", b"", 404),
        ("PUT", "quotas/nobody", {"rpm": 1}, 404),
        ("GET", "nothing", b"", 404),
    ],
)
def test_admin_explains_what_it_refuses(
    provider: RunningProvider, method: str, path: str, body: Any, status: int
) -> None:
    answered, said = admin(provider, method, path, body)
    assert answered == status
    assert said["error"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("hang", Fault(kind=FaultKind.HANG)),
        ("status:429", Fault(kind=FaultKind.STATUS, status=429)),
        ("cut:3", Fault(kind=FaultKind.CUT, after=3)),
        ("delay:0.5", Fault(kind=FaultKind.DELAY, delay_s=0.5)),
        ('{"kind":"slow","delay_s":1}', Fault(kind=FaultKind.SLOW, delay_s=1)),
    ],
)
def test_header_form(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize("text", ["x", "status:abc", "status:200", "reset:1", "delay:-1", "delay:nan", "{", "cut:-1"])
def test_header_form_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="x-sim-fault"):
        parse_fault(text)


def test_rate_is_a_share_of_the_requests() -> None:
    plan = FaultPlan((Fault(kind=FaultKind.RESET, rate=0.25),))
    rng = random.Random(1)
    assert sum(plan.draw(rng) is not None for _ in range(10_000)) == pytest.approx(2_500, abs=150)
