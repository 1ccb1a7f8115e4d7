"""Where Google access tokens come from.

What `GOOGLE_APPLICATION_CREDENTIALS` names decides:

- a service account's key: a signed assertion (RFC 7523) at its `token_uri`
- an external account (workload identity federation): the workload's token, from a file or a URL, is exchanged at
  Google's STS (RFC 8693), and then, if the file says so, for a service account's
- nothing: the metadata server is asked, for GKE workload identity or the machine's service account
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from joserfc import jwk, jwt
from msgspec import Struct

from auth.secret import Secret
from tenants.errors import KekUnavailable, KeyringUnsafe
from tenants.sources.protocol import HttpCalls
from tenants.wrappers.renewal import (
    FORM,
    Lasting,
    Renewed,
    call,
    decode,
    document_of,
    lasting,
    read_identity,
    token,
)

SCOPE: Final = "https://www.googleapis.com/auth/cloudkms"
METADATA: Final = "http://169.254.169.254"
STS: Final = "https://sts.googleapis.com/v1/token"
_ASSERTION_S: Final = 3600

TokenSource = Callable[[], Awaitable[Secret]]
"""Gives an access token that is good now; raises `KekUnavailable`."""


class _Impersonated(Struct, rename="camel"):
    access_token: str
    expire_time: datetime


def from_file(http: HttpCalls, path: Path, *, now: Callable[[], datetime]) -> TokenSource:
    """Choose by the file's `type`; it is read at each renewal, so that it can be replaced."""

    async def fetch() -> Lasting[Secret]:
        document = document_of(path, "GOOGLE_APPLICATION_CREDENTIALS")
        kind = document.get("type")
        try:
            if kind == "service_account":
                return await _service_account(http, document, now())
            if kind == "external_account":
                return await _external_account(http, document, now())
        except (KeyError, TypeError, ValueError) as error:
            raise KekUnavailable(
                "GOOGLE_APPLICATION_CREDENTIALS lacks something.", hint=f"Make {path} anew.", debug=repr(error)
            ) from None
        raise KekUnavailable(
            f"GOOGLE_APPLICATION_CREDENTIALS holds credentials of type {str(kind)[:30]!r}.",
            hint="Use a service account's key or an external account (workload identity federation).",
        )

    if not path.is_file():
        raise KeyringUnsafe(
            "The file of GOOGLE_APPLICATION_CREDENTIALS does not exist.", hint="Mount it, or unset the variable."
        )
    return Renewed(fetch, now=now)


def from_metadata(http: HttpCalls, *, now: Callable[[], datetime], endpoint: str = METADATA) -> TokenSource:
    """Ask the metadata server for the workload's own token."""
    url = f"{endpoint}/computeMetadata/v1/instance/service-accounts/default/token"

    async def fetch() -> Lasting[Secret]:
        headers = {"metadata-flavor": "Google"}
        return lasting(await token(http, url, "the Google metadata server", None, headers), now())

    return Renewed(fetch, now=now)


async def _service_account(http: HttpCalls, document: dict[str, Any], now: datetime) -> Lasting[Secret]:
    issued, url = int(now.timestamp()), str(document["token_uri"])
    claims = {
        "iss": document["client_email"],
        "scope": SCOPE,
        "aud": url,
        "iat": issued,
        "exp": issued + _ASSERTION_S,
    }
    key = jwk.RSAKey.import_key(document["private_key"])
    assertion = jwt.encode({"alg": "RS256", "kid": document["private_key_id"]}, claims, key)
    form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion}
    return lasting(await token(http, url, "Google's token endpoint", form), now)


async def _external_account(http: HttpCalls, document: dict[str, Any], now: datetime) -> Lasting[Secret]:
    impersonated = document.get("service_account_impersonation_url")
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "audience": str(document["audience"]),
        "scope": "https://www.googleapis.com/auth/iam" if impersonated else SCOPE,
        "subject_token": await _subject_token(http, document["credential_source"]),
        "subject_token_type": str(document["subject_token_type"]),
    }
    given = await token(http, str(document.get("token_url", STS)), "Google STS", form)
    if not impersonated:
        return lasting(given, now)
    what = "Google IAM credentials"
    headers = FORM | {"content-type": "application/json", "authorization": f"Bearer {given.access_token}"}
    body = msgspec.json.encode({"scope": [SCOPE], "lifetime": f"{_ASSERTION_S}s"})
    answer = decode(await call(http, "POST", str(impersonated), what, headers=headers, body=body), _Impersonated, what)
    return Lasting(Secret(answer.access_token), answer.expire_time)


async def _subject_token(http: HttpCalls, source: dict[str, Any]) -> str:
    if "file" in source:
        text = read_identity(Path(source["file"]))
    else:
        what = "the credential source of GOOGLE_APPLICATION_CREDENTIALS"
        text = (await call(http, "GET", str(source["url"]), what, headers=source.get("headers"))).body.decode().strip()
    form = source.get("format", {})
    if form.get("type", "text") == "json":
        text = str(msgspec.json.decode(text, type=dict[str, Any])[form["subject_token_field_name"]])
    return text
