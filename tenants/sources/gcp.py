"""Google Gemini: API keys of a Cloud project, restricted to the Generative Language API (API Keys API v2).

    POST   /v2/projects/{project}/locations/global/keys?keyId=  → operation    the id is the tag: it is made once only
    GET    /v2/projects/{project}/locations/global/keys/{id}                   with deleteTime once it was deleted
    GET    …/{id}/keyString                                                    the secret, which can be read again
    DELETE …/{id}   and   POST …/{id}:undelete                  → operation    within 30 days

A deleted key stops working and can come back for 30 days: that is how one is disabled. A token is got for each call by
a JWT that the service account's key signs (POST {token_url}, RFC 7523).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from joserfc import jwk, jwt
from joserfc.errors import JoseError
from msgspec import Struct, field

from auth.secret import Secret
from tenants.sources.json_calls import JsonApi, judged
from tenants.sources.protocol import (
    Capabilities,
    CredentialRefused,
    HttpCalls,
    ProviderKeyMade,
    SourceAway,
    SourceRefused,
    SourceUnknown,
)

TARGET = "generativelanguage.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
POLLS = 20
POLL_S = 0.5
_PROJECT = re.compile(r"[a-z0-9][a-z0-9:.-]{2,62}")
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"


class GcpSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The project whose quota the keys draw on, by id or number; `services` are the only ones that they open."""

    project: str
    services: tuple[str, ...] = (TARGET,)
    base_url: str = "https://apikeys.googleapis.com"
    token_url: str = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address


class _Account(Struct):
    client_email: str
    private_key: str
    private_key_id: str = ""
    type: str = "service_account"


class _Token(Struct):
    access_token: str


class _Failure(Struct):
    code: int = 0
    message: str = ""


class _Operation(Struct):
    name: str = ""
    done: bool = False
    error: _Failure | None = None
    response: dict[str, Any] = field(default_factory=dict)


class _Key(Struct, rename="camel"):
    name: str
    delete_time: str | None = None


class _KeyString(Struct, rename="camel"):
    key_string: str


class GcpDriver:
    """Needs the JSON key of a service account with the role API Keys Admin in the project."""

    capabilities = Capabilities(disables=True)

    def __init__(
        self,
        settings: GcpSettings,
        credential: Secret,
        http: HttpCalls,
        now_unix: Callable[[], float],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if not _PROJECT.fullmatch(settings.project):
            raise SourceRefused("project must be the id or the number of a Cloud project")
        if not settings.services:
            raise SourceRefused("services must name at least one: unrestricted keys are refused by Gemini")
        try:
            self._account = msgspec.json.decode(credential.reveal(), type=_Account)
            self._signing = jwk.RSAKey.import_key(self._account.private_key)
        except (msgspec.DecodeError, JoseError, ValueError, TypeError):
            raise CredentialRefused("must be the JSON key of a service account, as it was downloaded") from None
        self._settings = settings
        self._http = http
        self._now_unix = now_unix
        self._sleep = sleep
        self._parent = f"/v2/projects/{quote(settings.project, safe='')}/locations/global/keys"

    async def create(self, tag: str, *, in_use: str | None) -> ProviderKeyMade:
        """Make a key whose id is its tag."""
        del in_use
        api = await self._api()
        targets = [{"service": service} for service in self._settings.services]
        body = {"displayName": tag, "restrictions": {"apiTargets": targets}}
        started = await api.need("POST", f"{self._parent}?keyId={quote(tag, safe='')}", _Operation, body)
        try:
            await self._finish(api, started)
            return await self._read(api, tag)
        except SourceRefused as error:
            # Asked and begun: a missing right to look at the operation or the secret does not unmake the key.
            raise SourceUnknown(str(error)) from error

    async def find(self, tag: str) -> ProviderKeyMade | None:
        """Look the id up; its secret can be read again, by who has the right to."""
        api = await self._api()
        key = await api.call("GET", self._path(tag), _Key)
        if key is None or key.delete_time is not None:
            return None
        try:
            return await self._read(api, tag)
        except SourceRefused:
            return ProviderKeyMade(tag, None)

    async def disable(self, ref: str) -> None:
        """Delete it, which can be undone for 30 days."""
        await self._switch(ref, deleted=True)

    async def enable(self, ref: str) -> None:
        """Undelete it."""
        await self._switch(ref, deleted=False)

    async def revoke(self, ref: str) -> None:
        """Delete it; Google purges it after 30 days."""
        await self.disable(ref)

    async def _switch(self, ref: str, *, deleted: bool) -> None:
        api = await self._api()
        if await self._is_so(api, ref, deleted=deleted):
            return
        try:
            if deleted:
                started = await api.call("DELETE", self._path(ref), _Operation)
            else:
                started = await api.call("POST", f"{self._path(ref)}:undelete", _Operation, {})
        except SourceRefused:
            # A DELETE whose answer was lost with a kept connection is sent twice: the second is refused as needless.
            if await self._is_so(api, ref, deleted=deleted):
                return
            raise
        if started is not None:
            await self._finish(api, started)

    async def _is_so(self, api: JsonApi, ref: str, *, deleted: bool) -> bool:
        """Tell whether nothing is left to do: the key is so already, or Google knows it no more."""
        key = await api.call("GET", self._path(ref), _Key)
        return key is None or (key.delete_time is not None) is deleted

    def _path(self, ref: str) -> str:
        return f"{self._parent}/{quote(ref, safe='')}"

    async def _read(self, api: JsonApi, ref: str) -> ProviderKeyMade:
        shown = await api.need("GET", f"{self._path(ref)}/keyString", _KeyString)
        return ProviderKeyMade(ref, Secret(shown.key_string))

    async def _finish(self, api: JsonApi, operation: _Operation) -> None:
        for _ in range(POLLS):
            if operation.done:
                break
            await self._sleep(POLL_S)
            operation = await api.need("GET", f"/v2/{quote(operation.name, safe='/')}", _Operation)
        else:
            raise SourceAway("the operation at Google is not done yet")
        if operation.error is not None:
            raise SourceRefused(f"Google's operation failed: {operation.error.message[:200]}")

    async def _api(self) -> JsonApi:
        now = int(self._now_unix())
        claims = {
            "iss": self._account.client_email,
            "scope": SCOPE,
            "aud": self._settings.token_url,
            "iat": now,
            "exp": now + 300,
        }
        header = {"alg": "RS256", "typ": "JWT", "kid": self._account.private_key_id}
        assertion = jwt.encode(header, claims, self._signing, algorithms=["RS256"])
        form = urlencode({"grant_type": _GRANT, "assertion": assertion}).encode()
        headers = {"content-type": "application/x-www-form-urlencoded"}
        answer = await self._http.call("POST", self._settings.token_url, headers=headers, body=form)
        token = judged(answer, "Google's token endpoint")
        try:
            bearer = msgspec.json.decode(token.body, type=_Token).access_token
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SourceAway("Google answered with something else than a token") from None
        return JsonApi(self._http, self._settings.base_url, {"authorization": f"Bearer {bearer}"})
