"""Finds the caller's token among the places where SDKs put it. Pure.

OpenAI's SDK sends `Authorization: Bearer`, Anthropic's `x-api-key`, Azure's `api-key`, Google's `x-goog-api-key`. RFC
6750 section 2: one place only, and never the URL, which ends in logs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from auth.errors import NotAuthenticated
from auth.tokens import digest_of
from gateway.proxy.faults import RequestFault

_BARE = frozenset({b"x-api-key", b"api-key", b"x-goog-api-key"})
_SCHEMES = frozenset({b"bearer", b"dpop"})
_IN_QUERY = (b"access_token=", b"api_key=", b"api-key=", b"key=", b"token=")

MAX_TOKEN_BYTES = 8192


class NoCredentials(NotAuthenticated):
    """The request carries no token."""

    code = "missing_token"


class BadCredentials(NotAuthenticated):
    """What was sent is no access token."""

    code = "invalid_token"
    challenge = 'Bearer error="invalid_token"'


class MisplacedCredentials(RequestFault):
    """A token in the URL, or two of them: a malformed request (400), not a failed login (RFC 6750 section 3.1)."""

    code = "invalid_request"


class Presented(NamedTuple):
    """A token as it came, and its digest; `is_dpop`: with the scheme that announces a proof beside it (RFC 9449 section
    7.1).
    """

    token: str
    digest: bytes
    is_dpop: bool = False


def find_token(headers: Sequence[tuple[bytes, bytes]], query: bytes) -> Presented:
    """Return the token. Raises NoCredentials, BadCredentials or MisplacedCredentials, each with its mend."""
    token = b""
    is_dpop = False
    for name, value in headers:
        if name == b"authorization":
            scheme, _, found = value.strip().partition(b" ")
            if (word := scheme.lower()) not in _SCHEMES:
                raise BadCredentials(
                    "The Authorization header is not of the Bearer or DPoP scheme.",
                    hint="Send 'Authorization: Bearer <access token>' with a token from /oauth2/token.",
                )
            found, is_dpop = found.strip(), is_dpop or word == b"dpop"
        elif name in _BARE:
            found = value.strip()
            if found[:7].lower() == b"bearer ":
                found = found[7:].strip()
        else:
            continue
        if token and found != token:
            raise MisplacedCredentials(
                "The request carries two different credentials.",
                hint="Send the access token in one header only: Authorization, x-api-key, api-key or x-goog-api-key.",
            )
        token = found
    if query and any(part.startswith(_IN_QUERY) for part in query.lower().split(b"&")):
        raise MisplacedCredentials(
            "The URL carries a credential, which would end in logs.",
            hint="Take it out of the query and send it as 'Authorization: Bearer <access token>'.",
        )
    if not token:
        raise NoCredentials(
            "The request carries no access token.",
            hint="Get one from /oauth2/token with your client credentials and send it as 'Authorization: Bearer …', "
            "or give it to your SDK as its API key.",
        )
    if len(token) > MAX_TOKEN_BYTES or not token.isascii():
        raise BadCredentials("The access token is malformed.", hint="Send the access_token of /oauth2/token unchanged.")
    text = token.decode("ascii")
    return Presented(text, digest_of(text), is_dpop)
