"""A small OpenID provider on a real socket: discovery, authorization code with PKCE, id_tokens, userinfo.

It checks what a provider must check (redirect URI, client, PKCE, a code's single use), so that a relying party that
sends the wrong thing fails; and it misbehaves where a test says so.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

from joserfc import jws
from joserfc.jwk import ECKey, OctKey, RSAKey

CLIENT_ID, CLIENT_SECRET = "gateway", "a secret/with+signs"


@dataclass
class OpenIdProvider:
    """Signs `person` in whenever a browser comes; the members after it are what a test may turn wrong."""

    clock: Callable[[], float]
    redirect_uri: str
    issuer: str = ""
    person: dict[str, Any] = field(
        default_factory=lambda: {"sub": "u-1", "email": "ada@acme.example", "email_verified": True}
    )
    alg: str = "RS256"
    discovery: dict[str, Any] = field(default_factory=dict)
    id_token: dict[str, Any] = field(default_factory=dict)
    only_in_userinfo: frozenset[str] = frozenset()
    userinfo: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, str | None] = field(default_factory=dict)
    forge: Callable[[dict[str, Any]], str] | None = None
    methods: tuple[str, ...] = ("client_secret_basic",)
    away: bool = False
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rsa, self.ec = _keys()
        self._codes: dict[str, dict[str, str]] = {}
        self._access: dict[str, dict[str, Any]] = {}

    def sign(self, claims: dict[str, Any], key: RSAKey | ECKey | OctKey | None = None, **header: Any) -> str:
        """Make a JWT, with the provider's own key unless told otherwise."""
        own = self.rsa if self.alg == "RS256" else self.ec
        used = own if key is None else key
        full = {"alg": self.alg, "kid": own.kid, **header}
        return jws.serialize_compact(full, json.dumps(claims), used, algorithms=[full["alg"]])

    def visit(self, location: str) -> str:
        """Be the provider's page for a browser that was sent to `location`: sign `person` in and send it back."""
        parts = urlsplit(location)
        given = {name: values[0] for name, values in parse_qs(parts.query, strict_parsing=True).items()}
        assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{self.issuer}/authorize"
        assert (given["response_type"], given["client_id"], given["redirect_uri"]) == (
            "code",
            CLIENT_ID,
            self.redirect_uri,
        )
        assert given["code_challenge_method"] == "S256"
        assert "openid" in given["scope"].split()
        assert min(len(given["state"]), len(given["nonce"]), len(given["code_challenge"])) >= 43
        code = secrets.token_urlsafe(16)
        self._codes[code] = given
        answer: dict[str, str | None] = {"code": code, "state": given["state"], "iss": self.issuer, **self.answer}
        return f"{self.redirect_uri}?{urlencode({name: each for name, each in answer.items() if each is not None})}"

    def respond(self, method: str, path: str, headers: dict[str, str], body: str) -> tuple[int, Any]:
        """Answer one call of the relying party."""
        self.asked.append(f"{method} {path}")
        if self.away:
            return 503, {}
        if path == "/.well-known/openid-configuration":
            return 200, {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/jwks",
                "userinfo_endpoint": f"{self.issuer}/userinfo",
                "end_session_endpoint": f"{self.issuer}/logout",
                "token_endpoint_auth_methods_supported": list(self.methods),
                "authorization_response_iss_parameter_supported": True,
                **self.discovery,
            }
        if path == "/jwks":
            return 200, {"keys": [{**key.as_dict(private=False), "use": "sig"} for key in (self.rsa, self.ec)]}
        if path == "/userinfo":
            known = self._access.get(headers.get("authorization", "").removeprefix("Bearer "))
            return (401, {}) if known is None else (200, {**self.person, **self.userinfo})
        if path == "/token" and method == "POST":
            return self._token(headers, {name: values[0] for name, values in parse_qs(body).items()})
        return 404, {}

    def _token(self, headers: dict[str, str], form: dict[str, str]) -> tuple[int, Any]:
        if "client_secret_basic" in self.methods:
            pair = base64.b64decode(headers.get("authorization", "").removeprefix("Basic ")).decode()
            given = tuple(unquote_plus(each) for each in pair.split(":"))
        else:
            given = (form.get("client_id", ""), form.get("client_secret", ""))
        if given != (CLIENT_ID, CLIENT_SECRET):
            return 401, {"error": "invalid_client"}
        asked = self._codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if asked is None or asked["code_challenge"] != challenge or form.get("redirect_uri") != self.redirect_uri:
            return 400, {"error": "invalid_grant"}
        now = int(self.clock())
        claims = {name: each for name, each in self.person.items() if name not in self.only_in_userinfo}
        claims |= {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": asked["nonce"]}
        claims = {name: each for name, each in {**claims, **self.id_token}.items() if each is not None}
        access = secrets.token_urlsafe(16)
        self._access[access] = claims
        made = self.sign(claims) if self.forge is None else self.forge(claims)
        return 200, {"access_token": access, "token_type": "Bearer", "id_token": made}


@cache
def _keys() -> tuple[RSAKey, ECKey]:
    """Make one pair a process: RSA keys take longer than most tests."""
    return (
        RSAKey.generate_key(2048, {"kid": "r1"}, private=True),
        ECKey.generate_key("P-256", {"kid": "e1"}, private=True),
    )


@asynccontextmanager
async def run_openid_provider(clock: Callable[[], float], redirect_uri: str) -> AsyncIterator[OpenIdProvider]:
    """Serve one on a free port of this machine."""
    provider = OpenIdProvider(clock, redirect_uri)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := (await reader.readline()).decode():
                method, path, _ = line.split(" ", 2)
                headers: dict[str, str] = {}
                while (field := (await reader.readline()).decode().strip()) != "":
                    name, _, value = field.partition(":")
                    headers[name.lower()] = value.strip()
                body = (await reader.readexactly(int(headers.get("content-length", "0")))).decode()
                status, document = provider.respond(method, path, headers, body)
                text = json.dumps(document).encode()
                head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
                writer.write(head.encode() + text)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    provider.issuer = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield provider
    finally:
        server.close()
