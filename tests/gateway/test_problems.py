"""Every error has one HTTP shape: status, code, a sentence that mends, a request id; and nothing leaks."""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec
import pytest
from litestar import get, post
from litestar.params import JSONBody
from litestar.testing import create_test_client

from auth.errors import Conflict, Fault, Invalid, NotAuthenticated, NotFound, NotPermitted, Stale, Unavailable
from gateway.database import DatabaseAway
from gateway.problems import MEDIA_TYPE, handle, problem_of, status_of


class Model(msgspec.Struct, forbid_unknown_fields=True):
    rpm: int = 0


class Body(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    weight: int
    models: dict[str, Model] = {}


@get("/boom", sync_to_thread=False)
def boom() -> None:
    raise RuntimeError("secret sk-leak-12345")


@get("/fault", sync_to_thread=False)
def fault() -> None:
    raise Conflict("A pool named main exists already.", hint="Choose another name.", debug="unique violation")


@post("/body", sync_to_thread=False)
def body(data: JSONBody[Body]) -> dict[str, Any]:
    return {"name": data.name}


def test_a_body_nested_too_deeply_is_the_callers_fault() -> None:
    status, document, _ = ask("POST", "/body", content=b'{"name":' + b"[" * 100_000)
    assert (status, document["code"]) == (400, "malformed")


def test_a_body_that_is_not_utf8_is_the_callers_fault() -> None:
    status, document, _ = ask("POST", "/body", content=b'{"name":"\xff","weight":1}')
    assert (status, document["code"]) == (400, "malformed")
    assert "UTF-8" in document["hint"]


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (asyncpg.UntranslatableCharacterError("x"), 422),
        (asyncpg.CharacterNotInRepertoireError("x"), 422),
        (asyncpg.DeadlockDetectedError("x"), 503),
        (asyncpg.SyntaxOrAccessError("x"), 500),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_postgres_says_of_a_request(said: Exception, status: int, wrapped: bool) -> None:
    error: Exception = said
    if wrapped:
        error = RuntimeError("as SQLAlchemy raises it")
        error.__cause__ = said
    problem = problem_of(error)
    assert problem.status == status
    assert problem.hint
    assert ("Retry-After" in (problem.headers or {})) is (status == 503)


def ask(method: str, path: str, **arguments: Any) -> tuple[int, dict[str, Any], Any]:
    with create_test_client(
        [boom, fault, body], exception_handlers={Exception: handle}, raise_server_exceptions=False
    ) as client:
        response = client.request(method, path, **arguments)
    return response.status_code, response.json(), response


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotAuthenticated("x"), 401),
        (NotPermitted("x"), 403),
        (NotFound("x"), 404),
        (Conflict("x"), 409),
        (Stale("x"), 412),
        (Invalid("x"), 422),
        (Unavailable("x"), 503),
        (DatabaseAway("x"), 503),
        (Fault("x"), 400),
    ],
)
def test_each_fault_has_its_status(error: Fault, status: int) -> None:
    assert status_of(error) == status


def test_a_fault_says_how_to_mend_it_and_hides_its_debug_text() -> None:
    status, document, response = ask("GET", "/fault")
    assert (status, document["code"], document["status"]) == (409, "conflict", 409)
    assert document["hint"] == "Choose another name."
    assert document["type"] == "urn:llm-proxy:problem:conflict"
    assert response.headers["content-type"] == MEDIA_TYPE
    assert "unique violation" not in response.text


def test_the_unforeseen_tells_nothing() -> None:
    status, document, response = ask("GET", "/boom")
    assert (status, document["code"]) == (500, "internal")
    assert "sk-leak" not in response.text
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "arguments", "status", "code"),
    [
        ("GET", "/nowhere", {}, 404, "not_found"),
        ("PUT", "/body", {}, 405, "method_not_allowed"),
        ("POST", "/body", {"content": b"{", "headers": {"content-type": "application/json"}}, 400, "malformed"),
        ("POST", "/body", {"content": b"\xff", "headers": {"content-type": "application/json"}}, 400, "malformed"),
        ("POST", "/body", {"json": {"name": 3, "weight": 1}}, 422, "invalid"),
        ("POST", "/body", {"json": {"name": "a", "weight": 1, "wait": 2}}, 422, "invalid"),
        ("POST", "/body", {"json": []}, 422, "invalid"),
    ],
)
def test_bad_requests(method: str, path: str, arguments: dict[str, Any], status: int, code: str) -> None:
    got, document, _ = ask(method, path, **arguments)
    assert (got, document["code"]) == (status, code), document
    assert document["detail"]


def test_a_validation_error_points_at_the_place() -> None:
    _, document, _ = ask("POST", "/body", json={"name": 3, "weight": 1})
    assert document["errors"] == [{"pointer": "/name", "detail": "Expected `str`, got `int`"}]


def test_a_challenge_goes_with_a_401() -> None:
    problem = problem_of(NotAuthenticated("No token."))
    assert problem.headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"", "no body"),
        (b"[]", "Expected `object`"),
        (b'{"name":"a","weight":1,"x":1}', "unknown field `x`; use name, weight, models"),
    ],
)
def test_what_is_wrong_with_the_whole_body_points_at_the_whole_body(content: bytes, detail: str) -> None:
    status, document, _ = ask("POST", "/body", content=content)
    assert status == 422
    [error] = document["errors"]
    assert error["pointer"] == ""
    assert detail in error["detail"]


def test_any_entry_of_a_mapping_is_a_star() -> None:
    _, document, _ = ask("POST", "/body", content=b'{"name":"a","weight":1,"models":{"m":{"rps":1}}}')

    assert document["errors"] == [
        {"pointer": "/models/*", "detail": "Object contains unknown field `rps`; use rpm"},
    ]


def test_the_wrong_method_is_told_the_right_ones() -> None:
    status, document, response = ask("GET", "/body")
    assert status == 405
    assert "POST" in response.headers["allow"]
    assert "POST" in document["hint"]
