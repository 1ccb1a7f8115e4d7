"""Errors of the gateway in the words of the API that the caller speaks, so that its SDK raises its own. Pure.

Shapes: OpenAI error object, Anthropic errors page, Google AIP-193, RFC 9457 problem documents. Each carries the request
id and a sentence that says what to do.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from auth.errors import Conflict, Fault, Invalid, NotAuthenticated, NotFound, NotPermitted, Unavailable
from gateway.proxy.channel import HeaderList
from gateway.proxy.faults import RequestFault, WrongMethod

Shape = Literal["openai", "anthropic", "gemini", "problem"]

_STATUS: tuple[tuple[type[Fault], int], ...] = (
    (NotAuthenticated, 401),
    (NotPermitted, 403),
    (NotFound, 404),
    (Conflict, 409),
    (Invalid, 422),
    (Unavailable, 503),
)
_OPENAI_TYPE = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPE = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_GOOGLE_STATUS = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_TITLES = {
    400: "Bad request",
    401: "Not authenticated",
    403: "Not permitted",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    413: "Request too large",
    415: "Unsupported media type",
    422: "Invalid request",
    429: "Too many requests",
    500: "Internal error",
    502: "Provider failed",
    503: "Unavailable",
    504: "Provider timed out",
}


def status_of(fault: Fault) -> int:
    """Return the HTTP status of a fault on the data path."""
    if isinstance(fault, RequestFault):
        return fault.status
    for kind, status in _STATUS:
        if isinstance(fault, kind):
            return status
    return 500


def sentence_of(fault: Fault) -> str:
    """Return what the caller reads: what is wrong, then how to mend it."""
    return f"{fault.public} {fault.hint}".strip()


def error_body(shape: Shape, fault: Fault, request_id: str) -> bytes:
    """Return the JSON body of `fault` in `shape`."""
    status, message = status_of(fault), sentence_of(fault)
    body: dict[str, object]
    if shape == "openai":
        kind = _OPENAI_TYPE.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
        error = {"message": message, "type": kind, "param": None, "code": fault.code, "request_id": request_id}
        body = {"error": error}
    elif shape == "anthropic":
        kind = _ANTHROPIC_TYPE.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
        body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
    elif shape == "gemini":
        detail = {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": fault.code.upper(),
            "metadata": {"request_id": request_id},
        }
        kind = _GOOGLE_STATUS.get(status, "INVALID_ARGUMENT")
        body = {"error": {"code": status, "message": message, "status": kind, "details": [detail]}}
    else:
        body = {
            "type": f"urn:llm-proxy:problem:{fault.code}",
            "title": _TITLES.get(status, "Error"),
            "status": status,
            "detail": fault.public,
            "hint": fault.hint,
            "code": fault.code,
            "request_id": request_id,
        }
    return msgspec.json.encode(body)


def error_answer(shape: Shape, fault: Fault, request_id: str) -> tuple[int, HeaderList, bytes]:
    """Return status, headers and body of the answer to a request that failed in the gateway."""
    status, body = status_of(fault), error_body(shape, fault, request_id)
    identifier = request_id.encode()
    headers: HeaderList = [
        (b"content-type", b"application/problem+json" if shape == "problem" else b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"x-request-id", identifier),
        (b"x-llm-proxy-request-id", identifier),
    ]
    if shape == "anthropic":
        headers.append((b"request-id", identifier))
    if status == 401:
        challenge = getattr(fault, "challenge", "Bearer")
        headers.append((b"www-authenticate", challenge.encode("latin-1", "replace")))
    if status in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of the body is not wanted
    if isinstance(fault, WrongMethod):
        headers.append((b"allow", fault.allow.encode()))
    if isinstance(fault, RequestFault) and fault.retry_after_s is not None:
        # Rounded up: a caller that comes back at this second finds what was promised.
        headers.append((b"retry-after", b"%d" % max(1, -int(-fault.retry_after_s // 1))))
    return status, headers, body


def error_event(shape: Shape, operation: str, fault: Fault, request_id: str) -> bytes:
    """Return the server-sent event that ends a stream which broke after it had begun."""
    if operation == "responses":
        body: bytes = msgspec.json.encode(
            {"type": "error", "code": fault.code, "message": sentence_of(fault), "param": None, "sequence_number": 0}
        )
        return b"event: error\ndata: " + body + b"\n\n"
    prefix = b"event: error\n" if shape == "anthropic" else b""
    return prefix + b"data: " + error_body(shape, fault, request_id) + b"\n\n"
