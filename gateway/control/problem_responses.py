"""Writes what `gateway/problems.py` answers into the OpenAPI document: Litestar describes its own error shape there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.problems import MEDIA_TYPE

PROBLEM: Final[Mapping[str, Any]] = {
    "type": "object",
    "title": "Problem",
    "description": "A problem document (RFC 9457).",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri", "description": "`urn:llm-proxy:problem:` and the code."},
        "title": {"type": "string", "description": "The status in words."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "What is wrong with this request."},
        "code": {"type": "string", "description": "The kind of problem, for programs."},
        "request_id": {"type": "string", "description": "Names the request in the log."},
        "hint": {"type": "string", "description": "How to mend the request."},
        "errors": {
            "type": "array",
            "description": "Every place that must be mended.",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "A JSON pointer into the body; empty: all of it."},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}

_MEANINGS: Final[Mapping[str, str]] = {
    "400": "The body is not one JSON document in UTF-8",
    "401": "No access token, or one that is expired, revoked or not of this gateway",
    "403": "The token lacks the scope",
    "404": "There is no such thing in this tenant",
    "409": "It contradicts what exists: a name that is taken, a thing in use, a state that does not allow it",
    "412": "The thing has changed since the ETag in If-Match was read",
    "413": "The body is too large",
    "422": "A value is not accepted; `errors` lists each",
    "503": "The database is away; try again after Retry-After",
}


def with_problems(document: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI document with the problem responses of each operation in place of the framework's own.

    Which ones follow from its shape: a body can be malformed, a path or a body can name nothing, a change can conflict.
    """
    components = document.get("components", {})
    schemas = {**components.get("schemas", {}), "Problem": dict(PROBLEM)}
    return {
        **document,
        "paths": {
            path: {
                method: _operation(path, method, operation, schemas) if isinstance(operation, dict) else operation
                for method, operation in item.items()
            }
            for path, item in document.get("paths", {}).items()
        },
        "components": {**components, "schemas": schemas},
    }


def _operation(path: str, method: str, operation: dict[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    answers = {status: answer for status, answer in operation.get("responses", {}).items() if int(status) < 400}
    problems = {status: _answer(status) for status in _statuses(path, method, operation, schemas)}
    return {**operation, "responses": {**answers, **problems}}


def _statuses(path: str, method: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> list[str]:
    parameters = operation.get("parameters") or []
    possible = {"401", "403", "503"}
    if "requestBody" in operation:
        possible |= {"400", "413", "422"}
    if any(each.get("in") == "query" for each in parameters):
        possible.add("422")
    if any(each.get("name", "").lower() == "if-match" for each in parameters):
        possible |= {"412", "422"}
    if "{" in path or any(name.endswith("_id") for name in _members(operation, schemas)):
        possible.add("404")
    if method != "get":
        possible.add("409")
    return sorted(possible)


def _members(operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> list[str]:
    """Return the names of the members that the operation's body may have."""
    names: list[str] = []
    for kind in operation.get("requestBody", {}).get("content", {}).values():
        named = str(kind.get("schema", {}).get("$ref", "")).rpartition("/")[2]
        names += schemas.get(named, {}).get("properties", {})
    return names


def _answer(status: str) -> dict[str, Any]:
    reference = {"$ref": "#/components/schemas/Problem"}
    return {"description": _MEANINGS[status], "content": {MEDIA_TYPE: {"schema": reference}}}
