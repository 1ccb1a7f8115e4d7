"""Whom the simulated provider trusts: an issuer's keys by its JWKS, for one audience and subject.

The JWKS is fetched over HTTP as a provider would, and kept for a while; a key id that is not in it has it fetched anew.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Protocol

import msgspec

from auth.keyset import PublicKey


class Trusted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One rule: tokens of `issuer` for `audience` whose subject matches the glob; the keys are at `jwks_url`."""

    issuer: str
    jwks_url: str
    audience: str
    subject: str = "*"
    lifetime_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Bearer:
    """For whom an assertion vouches, and for how many seconds it still does; `lifetime_s` is the rule's."""

    subject: str
    ends_in_s: float
    lifetime_s: float


class Untrusted(Exception):
    """The assertion is not one that the provider was told to trust; the text says why."""


class Fetch(Protocol):
    """Gets a document over HTTP."""

    async def __call__(self, url: str) -> bytes:
        """Return the body; `Untrusted` when there is none."""
        ...


class TrustedIssuers:
    """Checks assertions; `clock` is Unix seconds."""

    MOST_S: Final = 300.0

    def __init__(self, fetch: Fetch, clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys: dict[str, tuple[float, dict[str, PublicKey]]] = {}
        self._lock = asyncio.Lock()
        self.rules: tuple[Trusted, ...] = ()

    async def check(self, assertion: str) -> Bearer:
        """Return whom a JWT vouches for; `Untrusted` when it is forged, stale, or meant for somebody else."""
        header, claims = (_part(assertion, index) for index in (0, 1))
        rule = next((each for each in self.rules if each.issuer == claims.get("iss")), None)
        if rule is None:
            raise Untrusted("the issuer is not trusted")
        if header.get("typ") not in (None, "JWT"):
            raise Untrusted("it is not an identity token")
        key = await self._key(rule, str(header.get("kid")))
        if key is None or header.get("alg") != key.alg or key.verify(assertion) is None:
            raise Untrusted("the signature does not verify")
        if claims.get("aud") != rule.audience:
            raise Untrusted("the audience is another one")
        subject = str(claims.get("sub"))
        if not fnmatchcase(subject, rule.subject):
            raise Untrusted("the subject is another one")
        now = self._clock()
        ends, begins = claims.get("exp"), claims.get("iat")
        if not isinstance(ends, int) or not isinstance(begins, int) or not begins - 60 <= now < ends:
            raise Untrusted("it is not valid at this time")
        return Bearer(subject, ends - now, rule.lifetime_s)

    async def _key(self, rule: Trusted, kid: str) -> PublicKey | None:
        async with self._lock:
            fetched_at, keys = self._keys.get(rule.jwks_url, (0.0, {}))
            if kid not in keys or self._clock() - fetched_at > self.MOST_S:
                document = msgspec.json.decode(await self._fetch(rule.jwks_url), type=dict[str, list[dict[str, Any]]])
                keys = {key.kid: key for key in map(PublicKey.from_jwk, document["keys"])}
                self._keys[rule.jwks_url] = (self._clock(), keys)
            return keys.get(kid)


def _part(token: str, index: int) -> dict[str, Any]:
    try:
        part = token.split(".")[index]
        decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        return msgspec.json.decode(decoded, type=dict[str, Any])
    except (IndexError, binascii.Error, msgspec.DecodeError, UnicodeDecodeError):
        raise Untrusted("it is not a JWT") from None
