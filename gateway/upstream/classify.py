"""What a provider's answer means for the key that was used: pure, one table for every path.

Sources: OpenAI error codes guide (429 `insufficient_quota` is billing, not pace), Anthropic errors page (529
`overloaded_error`, 402/403 billing and permission errors, 400 "credit balance is too low"), Google AIP-193
(`API_KEY_INVALID` comes as 400), OpenRouter errors page (402 credits, 403 moderation of the caller's input), Groq (498
capacity), RFC 9110 section 15.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.balancing.outcome import OutcomeKind
from gateway.upstream.error_shapes import ErrorBody, ErrorObject
from gateway.upstream.errors import ConnectFailed, UpstreamError, UpstreamTimeout

PEEK_BYTES = 16 * 1024
"""How much of an error's body is looked at."""
BODY_DECIDES = frozenset({400, 403, 429})
"""Statuses whose meaning depends on the body."""

_BILLING_OR_KEY = frozenset({
    "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error", "account_deactivated",
    "access_terminated", "invalid_api_key", "authentication_error", "permission_error", "api_key_invalid",
    "api_key_expired", "organization_restricted",
})  # fmt: skip
_PACE = frozenset({"rate_limit_error", "rate_limit_exceeded", "too_many_requests", "tokens", "requests",
                   "resource_exhausted", "throttling_exception", "throttlingexception"})  # fmt: skip
_CALLER = frozenset({
    "invalid_request_error", "model_not_found", "not_found_error", "request_too_large", "context_length_exceeded",
    "content_filter", "content_policy_violation", "invalid_argument", "unsupported_parameter",
    "string_above_max_length",
})  # fmt: skip
_LOW_CREDIT = "credit balance is too low"


_body_decoder = msgspec.json.Decoder(ErrorBody)


def classify(status: int, body: bytes = b"") -> OutcomeKind:
    """Say what an answer with `status` is; `body` is its beginning, needed for `BODY_DECIDES` only.

    A redirect counts as a server error: it is never followed, since the key would travel to an unchecked address.
    """
    if 200 <= status < 300:
        return OutcomeKind.OK
    if status in {401, 402}:
        return OutcomeKind.AUTH_REJECTED
    if status in BODY_DECIDES:
        return _classify_by_body(status, body)
    if status == 408:
        return OutcomeKind.TIMEOUT
    if status == 498:
        return OutcomeKind.RATE_LIMITED
    if 400 <= status < 500 and status != 425:
        return OutcomeKind.CLIENT_ERROR
    return OutcomeKind.SERVER_ERROR


def _classify_by_body(status: int, body: bytes) -> OutcomeKind:
    error = _decode(body)
    words = _words(error)
    stopped = bool(words & _BILLING_OR_KEY) or (
        error is not None and isinstance(error.message, str) and _LOW_CREDIT in error.message.lower()
    )
    if status == 429:
        return OutcomeKind.AUTH_REJECTED if stopped else OutcomeKind.RATE_LIMITED
    if status == 403:
        if error is None:
            # Not the API's own answer but that of a firewall before it: the caller's text may have provoked it, so it
            # must not be able to take keys out of service.
            return OutcomeKind.SERVER_ERROR
        if words & {"model_not_found", "content_policy_violation", "content_filter"} or _is_moderation(error):
            return OutcomeKind.CLIENT_ERROR
        return OutcomeKind.AUTH_REJECTED
    return OutcomeKind.AUTH_REJECTED if stopped else OutcomeKind.CLIENT_ERROR


def classify_error(error: UpstreamError) -> OutcomeKind:
    """Say what an attempt without an answer is."""
    if isinstance(error, ConnectFailed):
        return OutcomeKind.CONNECT_FAILED
    if isinstance(error, UpstreamTimeout):
        return OutcomeKind.TIMEOUT
    return OutcomeKind.SERVER_ERROR


def classify_event(data: bytes) -> OutcomeKind:
    """Say what the JSON of an answer with a good status is: OK for content, otherwise the class of its error."""
    try:
        body = _body_decoder.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return OutcomeKind.OK
    failed = body.response.get("error") if isinstance(body.response, dict) else None
    stopped = _stopped_choice(body.choices)
    if stopped is not None:
        words = _words(msgspec.convert(stopped, ErrorObject))
    elif body.error or body.type == "error" or (body.type == "response.failed" and failed):
        words = _words(_decode(data))
    else:
        return OutcomeKind.OK
    if words & _BILLING_OR_KEY:
        return OutcomeKind.AUTH_REJECTED
    if words & _PACE:
        return OutcomeKind.RATE_LIMITED
    if words & _CALLER:
        return OutcomeKind.CLIENT_ERROR
    statuses = [int(word) for word in words if word.isdecimal() and len(word) == 3 and word >= "400"]
    return classify(statuses[0], data) if statuses else OutcomeKind.SERVER_ERROR


def _stopped_choice(choices: object) -> dict[str, Any] | None:
    """Give the error that ended the only choice of a completion (OpenRouter: `finish_reason` is "error")."""
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return None
    error = choices[0].get("error")
    return error if isinstance(error, dict) and choices[0].get("finish_reason") == "error" else None


def _decode(body: bytes) -> ErrorObject | None:
    try:
        decoded = _body_decoder.decode(body)
        error = decoded.error
        if error is None and isinstance(decoded.response, dict):
            error = decoded.response.get("error")
        if isinstance(error, dict):
            return msgspec.convert(error, ErrorObject)
        if isinstance(error, str):
            return ErrorObject(message=error, code=error)
        return msgspec.json.decode(body, type=ErrorObject)
    except (msgspec.DecodeError, RecursionError):
        return None


def _words(error: ErrorObject | None) -> set[str]:
    if error is None:
        return set()
    words = {str(word).lower() for word in (error.type, error.code, error.status) if isinstance(word, str | int)}
    for detail in error.details if isinstance(error.details, list) else ():
        if isinstance(detail, dict) and "reason" in detail:
            words.add(str(detail["reason"]).lower())
    return words


def _is_moderation(error: ErrorObject) -> bool:
    return isinstance(error.metadata, dict) and "flagged_input" in error.metadata
