"""OpenID Connect, the relying party: authorization code with PKCE against any provider, for people in a browser.

What a browser was sent to the provider with (`Attempt`) stays in a cookie of that browser, signed: an answer that
reaches another browser, or that nobody asked for, signs nobody in (RFC 9700 sections 2.1 and 4.7, login CSRF). Provider
documents: OpenID Connect Core and Discovery 1.0, RFC 7636, RFC 9207.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, quote_plus, urlencode, urlsplit

import msgspec

from auth.assertions import Unverified, read_unverified, signed_by
from auth.errors import Unavailable
from auth.identity import Person, Rule, SignInRefused, check_id_token, make_person, safe_place
from auth.remote_keys import STALE_S, KeysNeeded, RemoteKeys
from auth.secret import Secret

ATTEMPT_S = 600
FRESH_S = 3600.0
WELL_KNOWN = "/.well-known/openid-configuration"
_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")
_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class WebAnswer:
    """A provider's answer to one call."""

    status: int
    body: bytes


class Web(Protocol):
    """Calls the provider past a guard against internal addresses; follows no redirect, reads no large answer."""

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> WebAnswer:
        """Return the answer; raises `Unavailable` when there is none to be had."""
        ...


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """The provider that this installation's people sign in at; without a secret we are a public client there.

    `operators` say who operates the installation; who belongs to a tenant is the tenant's to say (`auth.members`).
    """

    issuer: str
    client_id: str
    client_secret: Secret | None
    redirect_uri: str
    scope: str = "openid email profile"
    operators: tuple[Rule, ...] = ()


class Attempt(msgspec.Struct, frozen=True):
    """What one browser was sent to the provider with; times are Unix seconds."""

    state: str
    nonce: str
    verifier: str
    after: str
    tenant: str
    started_at: float

    def __repr__(self) -> str:
        return "Attempt(…)"


@dataclass(frozen=True, slots=True)
class Returned:
    """A browser that came back from the provider as it should, with a code that is not used yet."""

    attempt: Attempt
    code: Secret


class RelyingParty:
    """One provider; `key` signs the attempts' cookies, the same in every process. `keys` fetches through `web`'s guard.

    Raises `SignInRefused` for whatever the provider or the browser got wrong, `Unavailable` when it does not answer.
    """

    def __init__(self, config: ProviderConfig, web: Web, keys: RemoteKeys, *, key: bytes) -> None:
        self.config = config
        self._web = web
        self._keys = keys
        self._key = key
        self._document: Mapping[str, Any] | None = None
        self._fetched_at = 0.0
        self._fetching = asyncio.Lock()

    async def begin(self, *, after: str, tenant: str, now: float) -> tuple[str, str]:
        """Return where to send the browser, and the cookie's value that it must bring back."""
        document = await self._discovered(now)
        attempt = Attempt(
            state=secrets.token_urlsafe(32),
            nonce=secrets.token_urlsafe(32),
            verifier=secrets.token_urlsafe(48),
            after=safe_place(after),
            tenant=tenant[:63],
            started_at=now,
        )
        challenge = _base64(hashlib.sha256(attempt.verifier.encode()).digest())
        query = urlencode(
            {
                "response_type": "code",
                "client_id": self.config.client_id,
                "redirect_uri": self.config.redirect_uri,
                "scope": self.config.scope,
                "state": attempt.state,
                "nonce": attempt.nonce,
                "code_challenge": challenge,
                "code_challenge_method": "S256",
            },
            quote_via=quote,
        )
        endpoint = str(document["authorization_endpoint"])
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{query}", self._sign(attempt)

    async def take_answer(self, query: str, cookie: str, *, now: float) -> Returned:
        """Check what the browser came back with (RFC 6749 section 4.1.2, RFC 9207); nothing is sent for it yet."""
        attempt = self._read(cookie, now)
        if attempt is None:
            raise SignInRefused(
                "This browser has not begun to sign in, or more than ten minutes ago.", debug="no attempt cookie"
            )
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=32)
        given = dict(pairs)
        if len(given) < len(pairs):
            raise SignInRefused("The provider's answer is not valid.", debug="a repeated parameter")
        if not hmac.compare_digest(given.get("state", "").encode(), attempt.state.encode()):
            raise SignInRefused("The answer belongs to another attempt to sign in.", debug="state differs")
        document = await self._discovered(now)
        issuer = given.get("iss")
        if issuer is None and document.get("authorization_response_iss_parameter_supported") is True:
            raise SignInRefused("The provider's answer is not valid.", debug="iss is missing")
        if issuer is not None and issuer != self.config.issuer:
            raise SignInRefused("The answer comes from another provider.", debug=f"iss {issuer[:200]!r}")
        if "error" in given:
            raise SignInRefused(
                f"The provider did not sign you in: {_plain(given['error'])}.",
                debug=_plain(given.get("error_description", "")),
            )
        code = given.get("code", "")
        if not 1 <= len(code) <= 4096:
            raise SignInRefused("The provider's answer is not valid.", debug="no code")
        return Returned(attempt, Secret(code))

    async def identify(self, returned: Returned, *, now: float, enough: Rules) -> Person:
        """Trade the code for the person. The id_token's claims do if `enough`, else the userinfo's are added."""
        document = await self._discovered(now)
        granted = await self._redeem(document, returned)
        text = granted.get("id_token")
        token = read_unverified(text) if isinstance(text, str) else None
        if token is None:
            raise SignInRefused("The provider's answer is not valid.", debug="no id_token that is a JWT")
        config = self.config
        if not await self._is_signed(token, str(document["jwks_uri"]), now):
            raise SignInRefused("The provider's answer is not valid.", debug="the id_token's signature does not verify")
        fault = check_id_token(
            token.claims, issuer=config.issuer, client_id=config.client_id, nonce=returned.attempt.nonce, now=now
        )
        if fault is not None:
            raise SignInRefused("The provider's answer is not valid.", debug=f"id_token: {fault}")
        person = make_person(config.issuer, token.claims)
        place, access = document.get("userinfo_endpoint"), granted.get("access_token")
        if not isinstance(place, str) or not isinstance(access, str) or await enough(person):
            return person
        told = await self._userinfo(place, access)
        if told.get("sub") != person.subject:
            raise SignInRefused("The provider's answer is not valid.", debug="userinfo is about another sub")
        # An address and whether it was verified are one statement: both from the same document.
        pair = token.claims if {"email", "email_verified"} <= token.claims.keys() else told
        email = {name: pair.get(name) for name in ("email", "email_verified")}
        return make_person(config.issuer, {**told, **token.claims, **email})

    def end_session_endpoint(self) -> str | None:
        """Return where people may sign out at the provider too, if it is known."""
        place = (self._document or {}).get("end_session_endpoint")
        return place if isinstance(place, str) and self._is_usable(place) else None

    async def _redeem(self, document: Mapping[str, Any], returned: Returned) -> Mapping[str, Any]:
        config = self.config
        form = {
            "grant_type": "authorization_code",
            "code": returned.code.reveal(),
            "redirect_uri": config.redirect_uri,
            "code_verifier": returned.attempt.verifier,
        }
        headers = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}
        methods = document.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if config.client_secret is None:
            form["client_id"] = config.client_id
        elif "client_secret_basic" in methods:
            # RFC 6749 section 2.3.1: both parts are form-encoded first.
            pair = f"{quote_plus(config.client_id)}:{quote_plus(config.client_secret.reveal())}"
            headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        else:
            form |= {"client_id": config.client_id, "client_secret": config.client_secret.reveal()}
        answer = await self._web.call(
            "POST", str(document["token_endpoint"]), headers=headers, body=urlencode(form).encode()
        )
        if answer.status != 200:
            said = _plain(answer.body.decode("utf-8", "replace"))[:200]
            raise SignInRefused("The provider did not accept the sign-in.", debug=f"{answer.status} {said}")
        return _json(answer.body)

    async def _userinfo(self, place: str, access_token: str) -> Mapping[str, Any]:
        if not self._is_usable(place):
            raise SignInRefused("The provider's answer is not valid.", debug="userinfo_endpoint is not https")
        headers = {"authorization": f"Bearer {access_token}", "accept": "application/json"}
        answer = await self._web.call("GET", place, headers=headers)
        if answer.status != 200:
            raise SignInRefused("The provider did not say who you are.", debug=f"userinfo answered {answer.status}")
        return _json(answer.body)

    async def _is_signed(self, token: Unverified, uri: str, now: float) -> bool:
        kid = token.header.get("kid")
        known = kid if isinstance(kid, str) else None
        try:
            return signed_by(token, self._keys.keys(uri, known, now=now))
        except KeysNeeded:
            await self._keys.load(uri, now=now)
        try:
            return signed_by(token, self._keys.keys(uri, known, now=now))
        except KeysNeeded:
            return False

    async def _discovered(self, now: float) -> Mapping[str, Any]:
        async with self._fetching:
            held = self._document
            if held is not None and now - self._fetched_at < FRESH_S:
                return held
            try:
                found = await self._discover()
            except Unavailable:
                if held is not None and now - self._fetched_at < STALE_S:
                    return held  # the provider is away: what it said last serves until it is stale
                raise
            self._document, self._fetched_at = found, now
            return found

    async def _discover(self) -> Mapping[str, Any]:
        url = self.config.issuer.rstrip("/") + WELL_KNOWN
        answer = await self._web.call("GET", url, headers={"accept": "application/json"})
        if answer.status != 200:
            raise _away(f"{url} answered {answer.status}")
        try:
            document = _decode(answer.body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise _away(f"{url} is no JSON object: {error}") from None
        # Discovery section 4.3: another issuer's document here would mix two providers up.
        if document.get("issuer") != self.config.issuer:
            raise _away(f"{url} is about another issuer: {str(document.get('issuer'))[:200]!r}")
        for name in _ENDPOINTS:
            if not self._is_usable(document.get(name)):
                raise _away(f"{url}: {name} is missing or not https")
        return document

    def _is_usable(self, url: object) -> bool:
        """Accept https; http only beside an issuer that is http itself, on this machine."""
        try:
            parts = urlsplit(url) if isinstance(url, str) and url.isascii() and url.isprintable() else None
        except ValueError:
            return False
        if parts is None or not parts.netloc or "@" in parts.netloc or parts.fragment:
            return False
        return parts.scheme == "https" or (parts.scheme == "http" and self.config.issuer.startswith("http://"))

    def _sign(self, attempt: Attempt) -> str:
        body = msgspec.json.encode(attempt)
        return f"{_base64(body)}.{_base64(self._mac(body))}"

    def _read(self, cookie: str, now: float) -> Attempt | None:
        body, _, mac = cookie.partition(".")
        try:
            raw, given = _unbase64(body), _unbase64(mac)
            if not hmac.compare_digest(self._mac(raw), given):
                return None
            attempt = msgspec.json.decode(raw, type=Attempt)
        except (msgspec.MsgspecError, ValueError):
            return None
        return attempt if 0 <= now - attempt.started_at < ATTEMPT_S else None

    def _mac(self, body: bytes) -> bytes:
        about = f"{self.config.issuer}\x00{self.config.client_id}\x00".encode()
        return hmac.digest(self._key, b"llm-proxy sign-in attempt v1\x00" + about + body, hashlib.sha256)


class Rules(Protocol):
    """Tells whether what is known of a person makes them somebody here."""

    async def __call__(self, person: Person) -> bool:
        """Look the person up."""
        ...


def _json(body: bytes) -> Mapping[str, Any]:
    try:
        return _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise SignInRefused("The provider's answer is not valid.", debug="no JSON object") from None


def _away(debug: str) -> Unavailable:
    return Unavailable("The sign-in provider does not answer as it should.", hint="Try again later.", debug=debug)


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() and char.isascii() else "'" for char in text)[:300]


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
