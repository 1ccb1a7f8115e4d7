"""The one table from errors to HTTP: RFC 9457 problem documents for everything that is not an inference path.

A document has `type`, `title`, `status`, `detail`, `code`, `request_id`, and where they help `hint` and `errors` (a
list of `pointer` into the body and `detail`). What the caller is not to see goes to the log under the same request id.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import asyncpg
import msgspec
from litestar import Request, Response
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotAuthorizedException,
    NotFoundException,
    PermissionDeniedException,
    ValidationException,
)

from auth.errors import (
    Conflict,
    Fault,
    Invalid,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    Stale,
    Unavailable,
)
from tenants.members import members_at

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
_RETRY_AFTER_S: Final = "2"
_BODY_PARAMETER: Final = "data"
"""What Litestar calls the body in a handler's parameters, and so in its errors."""
_NO_BODY: Final = "The request has no body; send a JSON object"

STATUS: Final[Mapping[type[Fault], int]] = {
    NotAuthenticated: 401,
    NotPermitted: 403,
    NotFound: 404,
    Conflict: 409,
    Stale: 412,
    Invalid: 422,
    Unavailable: 503,
    Fault: 400,
}
"""The status of each class of fault; a subclass has its nearest ancestor's."""


_NUL: Final = (asyncpg.CharacterNotInRepertoireError, asyncpg.UntranslatableCharacterError)
"""What Postgres says of U+0000 in a text, and in a JSON value."""

_CROSSED: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
"""Two transactions waited for each other, and Postgres ended this one."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem, ready to be written; `headers` go with it."""

    status: int
    code: str
    detail: str
    hint: str = ""
    errors: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] | None = None

    def document(self, request_id: str) -> dict[str, Any]:
        """Return the RFC 9457 members."""
        document: dict[str, Any] = {
            "type": f"urn:llm-proxy:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
        if self.hint:
            document["hint"] = self.hint
        if self.errors:
            document["errors"] = [{"pointer": pointer, "detail": detail} for pointer, detail in self.errors]
        return document


def status_of(fault: Fault) -> int:
    """Return a fault's HTTP status."""
    return next(STATUS[kind] for kind in type(fault).__mro__ if kind in STATUS)


def problem_of(error: Exception, body: object = None) -> Problem:
    """Translate any error; one that nobody foresaw becomes a 500 that tells nothing. `body` is the request's shape."""
    if isinstance(error, Fault):
        return _of_fault(error)
    if isinstance(error, ValidationException):
        return Problem(
            422,
            "invalid",
            "The request is understood, but some of its values are not accepted.",
            hint="Each entry of `errors` names a place and what it expects; /docs describes every request.",
            errors=tuple(_validation_errors(error.extra, body)),
        )
    if isinstance(error, RecursionError) and "serializing" in str(
        error
    ):  # msgspec's, at a body that is nested too deep
        return Problem(400, "malformed", "The request cannot be read.", "Its JSON is nested too deeply.")
    if isinstance(error, UnicodeDecodeError):  # msgspec's, at a body: nothing else of a request is decoded strictly
        return Problem(400, "malformed", "The request cannot be read.", "Its JSON is not in UTF-8.")
    said = _said_by_postgres(error)
    if isinstance(said, _NUL):
        return Problem(
            422,
            "invalid",
            "A text of the request holds the character U+0000, which cannot be stored.",
            "Take it out and send the request again; nothing was changed.",
        )
    if isinstance(said, _CROSSED):
        return Problem(
            503,
            "unavailable",
            "Somebody changed the same things at this moment.",
            "Send the request again; nothing was changed.",
            headers={"Retry-After": _RETRY_AFTER_S},
        )
    if isinstance(error, NotFoundException):
        return Problem(404, "not_found", "There is nothing at this address.", hint="See /docs for the addresses.")
    if isinstance(error, MethodNotAllowedException):
        allowed = next((value for name, value in (error.headers or {}).items() if name.lower() == "allow"), "")
        hint = f"Use one of: {allowed}." if allowed else "See /docs for the methods of this address."
        return Problem(
            405, "method_not_allowed", "This address does not take this method.", hint, headers=error.headers
        )
    if isinstance(error, NotAuthorizedException):
        return Problem(
            401,
            "not_authenticated",
            "The request carries no valid access token.",
            hint="Get one at /oauth2/token and send it as `Authorization: Bearer …`.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    if isinstance(error, PermissionDeniedException):
        return Problem(403, "not_permitted", error.detail or "The token does not permit this.")
    if isinstance(error, HTTPException) and error.status_code < 500:
        return _of_client_error(error)
    return Problem(
        500,
        "internal",
        "The gateway failed at this request; the failure is logged.",
        hint="Tell the operators the request id.",
    )


def handle(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer an error of a Litestar handler; registered for `Exception`."""
    asked = getattr(request.scope.get("route_handler"), "parsed_data_field", None)
    problem = problem_of(error, getattr(asked, "annotation", None))
    request_id = str(request.scope.get("state", {}).get("request_id", ""))
    log_problem(problem, error, request_id=request_id, method=request.method, path=request.url.path)
    return Response(
        msgspec.json.encode(problem.document(request_id)),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", **(problem.headers or {})},
    )


def log_problem(problem: Problem, error: Exception, *, request_id: str, method: str, path: str) -> None:
    """Write what the caller is not told; only an unforeseen error brings its traceback."""
    about = {"request_id": request_id, "method": method, "path": path, "status": problem.status, "code": problem.code}
    if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request failed", extra=about, exc_info=error)
    elif problem.status >= 500:
        log.warning("request not served", extra={**about, "reason": getattr(error, "debug", "") or str(error)})
    elif getattr(error, "debug", ""):
        log.info("request refused", extra={**about, "reason": getattr(error, "debug", "")})


def _said_by_postgres(error: BaseException | None) -> asyncpg.PostgresError | None:
    """Return the server's own error, as it came or as the cause of what SQLAlchemy made of it."""
    while error is not None and not isinstance(error, asyncpg.PostgresError):
        error = error.__cause__
    return error


def _of_fault(fault: Fault) -> Problem:
    status = status_of(fault)
    headers: dict[str, str] = {}
    if fault.challenge:
        headers["WWW-Authenticate"] = fault.challenge
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = _RETRY_AFTER_S
    errors = fault.errors if isinstance(fault, Invalid) else ()
    return Problem(status, fault.code, fault.public, fault.hint, errors, headers)


def _of_client_error(error: HTTPException) -> Problem:
    known = {
        400: ("malformed", "The request cannot be read.", "Send a body that is one valid JSON document in UTF-8."),
        413: ("too_large", "The request body is too large.", "Send a smaller body."),
        415: ("unsupported_media_type", "The body's media type is not accepted.", "Send application/json."),
        429: ("too_many_requests", "Too many requests.", "Slow down and try again."),
    }
    code, detail, hint = known.get(error.status_code, ("refused", HTTPStatus(error.status_code).phrase, ""))
    return Problem(error.status_code, code, detail, hint, headers=error.headers)


def _validation_errors(extra: object, body: object) -> list[tuple[str, str]]:
    """Read Litestar's list of `{key, message, source}`; a body's key path becomes a JSON pointer (RFC 6901)."""
    found = []
    for entry in extra if isinstance(extra, list) else ():
        if isinstance(entry, dict):
            message = str(entry.get("message", "is not accepted"))
            key = str(entry.get("key", ""))
            source = str(entry.get("source", "body"))
            if key == _BODY_PARAMETER:
                # The body as a whole: its pointer is the empty one, and a KeyError's text is all there is when it is
                # missing.
                found.append(("", _NO_BODY if message == repr(_BODY_PARAMETER) else _with_members(message, body, [])))
                continue
            steps = key.replace("[...]", ".*").replace("[", ".").replace("]", "").replace(".", "/")
            if source == "body" and key:
                found.append((f"/{steps}", _with_members(message, body, steps.split("/"))))
            else:
                found.append((f"{source}: {key}".strip(": "), message))
    return found


def _with_members(message: str, body: object, steps: Sequence[str]) -> str:
    if "unknown field" in message and body is not None and (members := members_at(body, steps)):
        return f"{message}; use {', '.join(members)}"
    return message
