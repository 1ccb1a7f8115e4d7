"""JWTs that clients sign: reading them, and the rules for client assertions (RFC 7523 section 3). Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from joserfc import jws
from joserfc.errors import JoseError

from auth.client_keys import ALGORITHMS_OF, public_key
from auth.client_metadata import ASSERTION_ALGORITHMS

MAX_LIFETIME_S = 3600.0
"""How far ahead `exp` may lie, which bounds what the replay table keeps; Authlib's clients ask for a full hour."""

MAX_FEDERATED_LIFETIME_S = 86_400.0
SKEW_S = 30.0
_COMPACT = re.compile(r"([A-Za-z0-9_-]{2,4096})\.([A-Za-z0-9_-]{2,12000})\.[A-Za-z0-9_-]{8,2048}")


@dataclass(frozen=True, slots=True)
class Unverified:
    """A compact JWT whose signature was not looked at yet."""

    text: str
    header: Mapping[str, Any]
    claims: Mapping[str, Any]


def read_unverified(text: str) -> Unverified | None:
    """Split and decode a compact JWT; None if it is none."""
    shape = _COMPACT.fullmatch(text)
    if shape is None:
        return None
    try:
        header = msgspec.json.decode(_unbase64(shape[1]), type=dict[str, Any])
        claims = msgspec.json.decode(_unbase64(shape[2]), type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError, binascii.Error):
        return None
    return None if "crit" in header or "b64" in header else Unverified(text, header, claims)


def signed_by(token: Unverified, keys: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether one of the JWKs in `keys` signed `token`, with an algorithm that fits the key's type.

    `kid` narrows the search where key and token carry one; `jwk`, `jku`, `x5u` and `x5c` of the header are never read.
    """
    alg, kid = token.header.get("alg"), token.header.get("kid")
    if alg not in ASSERTION_ALGORITHMS:
        return False
    for members in keys:
        if alg not in ALGORITHMS_OF.get(str(members.get("kty")), ()) or members.get("alg", alg) != alg:
            continue
        if kid is not None and members.get("kid") is not None and members["kid"] != kid:
            continue
        if verify_with(token, members, alg):
            return True
    return False


def verify_with(token: Unverified, members: Mapping[str, Any], alg: str) -> bool:
    """Tell whether the JWK `members` signed `token` with exactly `alg`."""
    # The registry that ignores unknown header members: the standard one refuses what extensions put there.
    registry = jws.JWSRegistry(algorithms=[alg], strict_check_header=False)
    registry.max_header_length = 4096
    try:
        jws.deserialize_compact(token.text, public_key(members), registry=registry)
    except (JoseError, ValueError, TypeError, KeyError):
        return False
    return True


def check_client_assertion(claims: Mapping[str, Any], *, issuer: str, client_id: str, now: float) -> str | None:
    """Return what is wrong with a client assertion's claims, None if nothing is (RFC 7523 section 3).

    `aud` must be the issuer as a single string: an array or the token endpoint's URL would let another server that the
    client also talks to use the assertion here (draft-ietf-oauth-rfc7523bis).
    """
    if claims.get("iss") != client_id or claims.get("sub") != client_id:
        return "iss and sub must be the client_id"
    if claims.get("aud") != issuer:
        return "aud must be the issuer, as a single string"
    expires, not_before, issued = claims.get("exp"), claims.get("nbf", 0), claims.get("iat", 0)
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in (expires, not_before, issued)):
        return "exp is required; exp, nbf and iat must be numbers"
    if not now - SKEW_S < float(expires or 0) <= now + MAX_LIFETIME_S + SKEW_S:
        return "exp has passed or lies more than an hour ahead"
    if max(not_before, issued) > now + SKEW_S:
        return "nbf or iat lies ahead"
    jti = claims.get("jti")
    return None if isinstance(jti, str) and 1 <= len(jti) <= 256 else "jti is required"


def check_federated(claims: Mapping[str, Any], *, platform: str, subject: str, audience: str, now: float) -> str | None:
    """Return what is wrong with a platform's JWT about a workload, None if nothing is (RFC 7523 section 3).

    Platforms put `aud` into an array of one and let their tokens live for hours: both pass, a second audience does not.
    """
    if claims.get("iss") != platform or claims.get("sub") != subject:
        return "iss and sub must be the registered ones"
    if claims.get("aud") not in (audience, [audience]):
        return "aud must be the issuer alone"
    expires, not_before, issued = claims.get("exp"), claims.get("nbf", 0), claims.get("iat", 0)
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in (expires, not_before, issued)):
        return "exp is required; exp, nbf and iat must be numbers"
    if not now - SKEW_S < float(expires or 0) <= now + MAX_FEDERATED_LIFETIME_S:
        return "exp has passed or lies more than a day ahead"
    return "nbf or iat lies ahead" if max(not_before, issued) > now + SKEW_S else None


def _unbase64(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
