"""The OAuth endpoints under random bytes: never a 5xx, never a token, always the errors of RFC 6749 section 5.2."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.auth.conftest import World

ENDPOINTS = ("/oauth2/token", "/oauth2/introspect", "/oauth2/revoke", "/t/nobody/oauth2/token")
NAMES = (
    "grant_type", "scope", "client_id", "client_secret", "client_assertion", "client_assertion_type", "resource",
    "audience", "authorization_details", "subject_token", "subject_token_type", "requested_subject", "token",
    "requested_token_type", "actor_token", "token_type_hint",
)  # fmt: skip
VALUES = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            "client_credentials",
            "urn:ietf:params:oauth:grant-type:token-exchange",
            "urn:ietf:params:oauth:token-type:access_token",
            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "inference",
            "[" * 5000,
            '[{"type":"llm_proxy","models":["*"]}]',
            '{"type":1e999}',
            "eyJhbGciOiJub25lIn0.e30.",
            "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.AAAAAAAAAAAA",
            "lpc_nobody",
            "\x00",
        ]
    ),
)
FORMS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=8).map(urlencode).map(str.encode)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "authorization": st.sampled_from(["Basic Og==", "Basic !!", "Basic /////w==", "Bearer x", "DPoP x", ""]),
        "dpop": st.sampled_from(["x", "e30.e30.AAAAAAAAAAAA", "eyJ0eXAiOiJkcG9wK2p3dCJ9.e30.AAAAAAAAAAAA"]),
        "content-type": st.sampled_from(
            ["application/x-www-form-urlencoded", "application/json", "multipart/form-data", ""]
        ),
        "accept": st.sampled_from(["*/*", "application/token-introspection+jwt"]),
    },
)
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(status: int, body: Any) -> None:
    assert 400 <= status < 500, body
    assert isinstance(body["error"], str)
    assert "access_token" not in body


@FUZZ
@given(endpoint=st.sampled_from(ENDPOINTS), body=st.one_of(FORMS, st.binary(max_size=300)), headers=HEADERS)
async def test_strangers_get_errors_only(world: World, endpoint: str, body: bytes, headers: dict[str, str]) -> None:
    given_type = {"content-type": "application/x-www-form-urlencoded", **headers}
    answer = await world.http.post(endpoint, content=body, headers=given_type)
    check(answer.status_code, answer.json())


@FUZZ
@given(
    grant=st.sampled_from(["client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"]),
    more=st.lists(st.tuples(st.sampled_from([each for each in NAMES if "client" not in each]), VALUES), max_size=6),
)
async def test_a_client_gets_a_token_or_an_error(world: World, grant: str, more: list[tuple[str, str]]) -> None:
    client = await _client(world)
    fields = [("grant_type", grant), *(each for each in more if each[0] != "grant_type")]
    answer = await world.http.post(
        "/oauth2/token",
        content=urlencode(fields).encode(),
        headers={**client, "content-type": "application/x-www-form-urlencoded"},
    )
    if answer.status_code == 200:
        assert world.verifier.verify(answer.json()["access_token"]).client_id
    else:
        check(answer.status_code, answer.json())


@pytest.mark.parametrize("path", ["/oauth2/introspect", "/oauth2/revoke"])
@FUZZ
@given(token=VALUES)
async def test_any_token_may_be_asked_about(world: World, path: str, token: str) -> None:
    answer = await world.post(path, {"token": token}, headers=await _client(world))
    if answer.status_code == 200:
        assert answer.json() in ({"active": False}, {})
    else:
        check(answer.status_code, answer.json())


async def _client(world: World) -> dict[str, str]:
    """Return one client's credentials for all examples of a test."""
    known = getattr(world, "fuzz_client", None)
    if known is None:
        known = (await world.client("acme")).basic
        world.fuzz_client = known  # type: ignore[attr-defined]
    return dict(known)
