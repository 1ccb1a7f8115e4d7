"""What an answer means: named cases from the providers' own documentation."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.outcome import OutcomeKind
from gateway.upstream.classify import classify, classify_error, classify_event
from gateway.upstream.errors import AddressRefused, ConnectFailed, UpstreamBroken, UpstreamTimeout
from gateway.upstream.preview import PREVIEW_BYTES, judge, judge_json

OK, CLIENT, LIMITED, AUTH = (
    OutcomeKind.OK,
    OutcomeKind.CLIENT_ERROR,
    OutcomeKind.RATE_LIMITED,
    OutcomeKind.AUTH_REJECTED,
)
SERVER, TIMEOUT = OutcomeKind.SERVER_ERROR, OutcomeKind.TIMEOUT


def error(**fields: object) -> bytes:
    return json.dumps({"error": fields}).encode()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        pytest.param(200, b"", OK, id="ok"),
        pytest.param(201, b"", OK, id="created"),
        pytest.param(302, b"", SERVER, id="redirect"),
        pytest.param(400, error(type="invalid_request_error", code="context_length_exceeded"), CLIENT, id="too-long"),
        pytest.param(400, b"", CLIENT, id="400-bare"),
        pytest.param(400, error(code="billing_hard_limit_reached"), AUTH, id="openai-billing"),
        pytest.param(
            400,
            error(type="invalid_request_error", message="Your credit balance is too low to access the API."),
            AUTH,
            id="anthropic-credit",
        ),
        pytest.param(
            400,
            error(code=400, status="INVALID_ARGUMENT", details=[{"reason": "API_KEY_INVALID"}]),
            AUTH,
            id="gemini-bad-key",
        ),
        pytest.param(401, b"", AUTH, id="401"),
        pytest.param(402, b"", AUTH, id="402"),
        pytest.param(403, error(type="permission_error"), AUTH, id="anthropic-permission"),
        pytest.param(403, error(code=403, status="PERMISSION_DENIED"), AUTH, id="gemini-permission"),
        pytest.param(403, b"<html>blocked by firewall</html>", SERVER, id="firewall"),
        pytest.param(403, error(code="model_not_found"), CLIENT, id="no-access-to-model"),
        pytest.param(403, error(code=403, metadata={"flagged_input": "x"}), CLIENT, id="openrouter-moderation"),
        pytest.param(404, error(code="model_not_found"), CLIENT, id="404"),
        pytest.param(408, b"", TIMEOUT, id="408"),
        pytest.param(409, b"", CLIENT, id="409"),
        pytest.param(413, b"", CLIENT, id="413"),
        pytest.param(422, b"", CLIENT, id="422"),
        pytest.param(425, b"", SERVER, id="425"),
        pytest.param(429, error(type="requests", code="rate_limit_exceeded"), LIMITED, id="openai-rpm"),
        pytest.param(429, error(type="tokens", code="rate_limit_exceeded"), LIMITED, id="openai-tpm"),
        pytest.param(429, error(type="insufficient_quota", code="insufficient_quota"), AUTH, id="openai-no-money"),
        pytest.param(429, error(code=429, status="RESOURCE_EXHAUSTED"), LIMITED, id="gemini"),
        pytest.param(429, b"not json", LIMITED, id="429-text"),
        pytest.param(429, b"[" * 5000, LIMITED, id="429-deep"),
        pytest.param(498, b"", LIMITED, id="groq-capacity"),
        pytest.param(500, b"", SERVER, id="500"),
        pytest.param(503, b"", SERVER, id="503"),
        pytest.param(529, error(type="overloaded_error"), SERVER, id="anthropic-overloaded"),
    ],
)
def test_statuses(status: int, body: bytes, kind: OutcomeKind) -> None:
    assert classify(status, body) is kind


@given(st.integers(200, 999), st.binary(max_size=200))
def test_never_raises(status: int, body: bytes) -> None:
    assert isinstance(classify(status, body), OutcomeKind)
    assert isinstance(classify_event(body), OutcomeKind)
    judge(body)


def test_exceptions() -> None:
    assert classify_error(ConnectFailed("x")) is OutcomeKind.CONNECT_FAILED
    assert classify_error(AddressRefused("x")) is OutcomeKind.CONNECT_FAILED
    assert classify_error(UpstreamTimeout("idle")) is TIMEOUT
    assert classify_error(UpstreamBroken("x")) is SERVER


OVERLOADED = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
START = b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n'


@pytest.mark.parametrize(
    ("buffer", "verdict"),
    [
        pytest.param(b"", None, id="nothing"),
        pytest.param(b'data: {"id"', None, id="half-an-event"),
        pytest.param(b'data: {"id":"1","choices":[]}\n\n', OK, id="openai-content"),
        pytest.param(b'data: {"id":"1"}\r\n\r\n', OK, id="crlf"),
        pytest.param(b"data: [DONE]\n\n", OK, id="done"),
        pytest.param(b": OPENROUTER PROCESSING\n\n", None, id="comment"),
        pytest.param(b': hi\n\ndata: {"id":"1"}\n\n', OK, id="comment-content"),
        pytest.param(START, None, id="message-start"),
        pytest.param(START + b'event: ping\ndata: {"type":"ping"}\n\n', None, id="ping"),
        pytest.param(START + b'event: content_block_start\ndata: {"a":1}\n\n', OK, id="anthropic-content"),
        pytest.param(OVERLOADED, SERVER, id="anthropic-overloaded"),
        pytest.param(START + OVERLOADED, SERVER, id="overloaded-after-start"),
        pytest.param(b"event: error\ndata: nonsense\n\n", SERVER, id="unreadable-error"),
        pytest.param(b"data: " + error(code="rate_limit_exceeded") + b"\n\n", LIMITED, id="openai-rate"),
        pytest.param(b"data: " + error(code=429) + b"\n\n", LIMITED, id="openrouter-code"),
        pytest.param(b"data: " + error(type="insufficient_quota") + b"\n\n", AUTH, id="openai-quota"),
        pytest.param(b"data: " + error(type="invalid_request_error") + b"\n\n", CLIENT, id="openai-invalid"),
        pytest.param(b"data: " + error(type="server_error") + b"\n\n", SERVER, id="openai-server"),
        pytest.param(b'data: {"id":"1","error":null}\n\n', OK, id="null-error"),
        pytest.param(b'data: {"x":"say \\"error\\" twice"}\n\n', OK, id="the-word-error"),
        pytest.param(
            b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"code":"x"}}}\n\n',
            SERVER,
            id="responses-failed",
        ),
        pytest.param(b'data: {"id":"1"}\n\n' + OVERLOADED, OK, id="error-after-content-is-too-late"),
        pytest.param(b":" + b"x" * PREVIEW_BYTES, OK, id="too-long-to-wait-for"),
    ],
)
def test_beginnings_of_streams(buffer: bytes, verdict: OutcomeKind | None) -> None:
    assert judge(buffer) is verdict
    undecided = [judge(buffer[:end]) for end in range(min(len(buffer), 400))]
    assert all(early in {None, verdict} for early in undecided)


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        pytest.param(b"", OK, id="nothing"),
        pytest.param(b'{"id":"1","choices":[]}', OK, id="content"),
        pytest.param(b'{"id":"1","error":null,"output":[]}', OK, id="null-error"),
        pytest.param(b'{"choices":[{"message":{"content":"{\\"error\\": {}}"}}]}', OK, id="content-about-errors"),
        pytest.param(b'[{"error": {"code": 500}}]', OK, id="no-object"),
        pytest.param(b'{"x":{"error": {"code": 500}}}', OK, id="not-at-the-top"),
        pytest.param(error(code=502, message="Provider returned error"), SERVER, id="openrouter-502"),
        pytest.param(b"\n\n   " + error(code=429), LIMITED, id="after-white-space"),
        pytest.param(error(code=402), AUTH, id="openrouter-credits"),
        pytest.param(error(code=408), OutcomeKind.TIMEOUT, id="openrouter-timeout"),
        pytest.param(error(code=400, message="bad"), CLIENT, id="invalid"),
        pytest.param(error(code=403, metadata={"flagged_input": "x"}), CLIENT, id="moderation"),
        pytest.param(error(code="999"), SERVER, id="no-status"),
        pytest.param(b'{"error" : "overloaded"}', SERVER, id="a-sentence"),
        pytest.param(b'{"error": {"code": 502}', OK, id="cut"),
        pytest.param(b'{"status":"failed","error":{"code":"rate_limit_exceeded"}}', LIMITED, id="responses-failed"),
        pytest.param(
            b'{"choices":[{"finish_reason":"error","error":{"code":502},"message":{"content":""}}]}',
            SERVER,
            id="choice",
        ),
        pytest.param(b'{"choices":[{"finish_reason":"stop","error":{"code":502}}]}', OK, id="choice-that-ended-well"),
        pytest.param(b"{" + b" " * PREVIEW_BYTES + error(code=502)[1:], OK, id="too-far-in"),
    ],
)
def test_errors_under_a_good_status(body: bytes, verdict: OutcomeKind) -> None:
    assert judge_json(body, ended=True) is verdict
    undecided = {judge_json(body[:end], ended=False) for end in range(min(len(body), 400))}
    assert undecided <= {None, OK}
    if verdict is not OK:
        assert judge_json(body[:3], ended=False) is None


def test_white_space_is_waited_out_within_bounds() -> None:
    assert judge_json(b"\n" * 10, ended=False) is None
    assert judge_json(b"\n" * PREVIEW_BYTES, ended=False) is OK
