"""The OpenAPI document says which problems an operation answers with, in the shape that they really have."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from litestar import patch
from litestar.params import FromPath, JSONBody
from litestar.testing import TestClient

from auth.errors import Invalid
from gateway.control.app import make_control
from gateway.control.problem_responses import PROBLEM, with_problems
from gateway.problems import MEDIA_TYPE, problem_of

OK = {"200": {"description": "fine"}, "400": {"description": "the framework's"}}
IF_MATCH = [{"name": "if-match", "in": "header"}]


class Change(msgspec.Struct):
    name: str


@patch("/api/v1/things/{thing:str}", sync_to_thread=False)
def change(thing: FromPath[str], data: JSONBody[Change]) -> str:
    return f"{thing} {data.name}"


@pytest.mark.parametrize(
    ("path", "method", "operation", "problems"),
    [
        ("/things", "get", {}, {"401", "403", "503"}),
        ("/things", "get", {"parameters": [{"name": "limit", "in": "query"}]}, {"401", "403", "422", "503"}),
        ("/things", "post", {"requestBody": {}}, {"400", "401", "403", "409", "413", "422", "503"}),
        ("/things/{id}", "get", {}, {"401", "403", "404", "503"}),
        ("/things/{id}", "delete", {"parameters": IF_MATCH}, {"401", "403", "404", "409", "412", "422", "503"}),
    ],
)
def test_problems_follow_from_an_operations_shape(
    path: str, method: str, operation: dict[str, Any], problems: set[str]
) -> None:
    document = with_problems({"paths": {path: {method: {**operation, "responses": OK}}}})
    answers = document["paths"][path][method]["responses"]
    assert set(answers) == problems | {"200"}
    assert answers["200"] == OK["200"]
    assert all(list(answers[status]["content"]) == [MEDIA_TYPE] for status in problems)


def test_a_body_that_names_something_may_name_nothing() -> None:
    named = {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/ActingIn"}}}}}
    schemas: dict[str, Any] = {"ActingIn": {"properties": {"tenant_id": {}, "scopes": {}}}}
    paths = {"/things": {"post": {**named, "responses": OK}}}
    document = with_problems({"paths": paths, "components": {"schemas": schemas}})
    assert "404" in document["paths"]["/things"]["post"]["responses"]


def test_the_described_shape_is_the_real_one() -> None:
    problem = problem_of(Invalid("No.", hint="Yes.", errors=(("/name", "is taken"),))).document("req_1")
    assert set(problem) == set(PROBLEM["properties"])
    assert set(problem["errors"][0]) == set(PROBLEM["properties"]["errors"]["items"]["properties"])


def test_the_application_serves_it() -> None:
    with TestClient(make_control([change])) as client:
        document = client.get("/api/v1/openapi.json").json()
        assert "validation" not in client.get("/docs").text.lower()
    operation = document["paths"]["/api/v1/things/{thing}"]["patch"]
    assert set(operation["responses"]) == {"200", "400", "401", "403", "404", "409", "413", "422", "503"}
    assert "Problem" in document["components"]["schemas"]
