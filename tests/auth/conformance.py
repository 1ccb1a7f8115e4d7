"""What the conformance tables share: their rows, and the requests that clients of every kind make."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from joserfc import jwt

from auth.client_metadata import TOKEN_EXCHANGE
from auth.keyset import Signer
from tests.auth.conftest import ISSUER, NOW, World

FORM = "application/x-www-form-urlencoded"
GRANT = {"grant_type": "client_credentials"}
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"

Row = Callable[[World], Awaitable[None]]


class Table(dict[str, Row]):
    """Rows by name: what an RFC demands, and where."""

    def row(self, name: str) -> Callable[[Row], Row]:
        """Add a row; names do not repeat."""

        def keep(check: Row) -> Row:
            assert name not in self
            self[name] = check
            return check

        return keep


def basic(client_id: str, secret: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()}


def refused(answer: httpx.Response, status: int, error: str) -> None:
    assert (answer.status_code, answer.json()["error"]) == (status, error), answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"].startswith("application/json")
    assert all(" " <= char <= "~" and char not in '"\\' for char in answer.json().get("error_description", ""))


def claims_of(token: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return found


def header_of(token: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".", maxsplit=1)[0] + "=="))
    return found


def jwks(signer: Signer) -> dict[str, Any]:
    return {"keys": [signer.public().jwk()]}


def assertion(signer: Signer, client_id: str, *, header: dict[str, Any] | None = None, **changes: Any) -> str:
    claims: dict[str, Any] = {
        "iss": client_id,
        "sub": client_id,
        "aud": ISSUER,
        "iat": int(NOW),
        "exp": int(NOW) + 60,
        "jti": "once",
        **changes,
    }
    kept = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode({"alg": signer.alg, "kid": signer.kid, **(header or {})}, kept, signer.key, [signer.alg])


async def present(world: World, text: str, **more: str) -> httpx.Response:
    data = {**GRANT, "client_assertion": text, "client_assertion_type": ASSERTION_TYPE, **more}
    return await world.post("/oauth2/token", data)


async def introspect(world: World, client: Any, token: str, **more: Any) -> httpx.Response:
    return await world.post("/oauth2/introspect", {"token": token, **more}, headers=client.basic)


async def exchange(world: World, client: Any, token: str, **parameters: str) -> httpx.Response:
    data = {"grant_type": TOKEN_EXCHANGE, "subject_token": token, "subject_token_type": ACCESS_TOKEN, **parameters}
    return await world.post("/oauth2/token", {k: v for k, v in data.items() if v}, headers=client.basic)
