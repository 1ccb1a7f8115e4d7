"""Azure OpenAI: an account has two keys, and the idle one is regenerated (Cognitive Services management API).

    POST {account}/regenerateKey?api-version=2023-05-01   {"keyName": "Key1" | "Key2"} → {"key1", "key2"}

`account` is /subscriptions/…/resourceGroups/…/providers/Microsoft.CognitiveServices/accounts/…. Regenerating replaces
the idle slot's key, so it may be repeated; nothing can be looked up by a tag, disabled or deleted. A token for the API
is got for each call by client credentials (POST {login_url}/{directory}/oauth2/v2.0/token).
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct

from auth.secret import Secret
from tenants.sources.json_calls import JsonApi
from tenants.sources.protocol import Capabilities, HttpCalls, ProviderKeyMade, SourceAway, SourceRefused

API_VERSION = "2023-05-01"
SLOTS = ("Key1", "Key2")
_NAME = re.compile(r"[A-Za-z0-9._()-]{1,90}")


class AzureSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the account is, and the Entra application that may regenerate its keys.

    `in_use` is the slot whose key was given by hand at the beginning.
    """

    directory_id: str
    client_id: str
    subscription_id: str
    resource_group: str
    account: str
    in_use: str = "Key1"
    base_url: str = "https://management.azure.com"
    login_url: str = "https://login.microsoftonline.com"


class _Keys(Struct):
    key1: str
    key2: str


class _Token(Struct):
    access_token: str


class AzureDriver:
    """Needs the client secret of an Entra application with the right to regenerate the account's keys."""

    capabilities = Capabilities(finds=False, repeatable=True, revokes=False, slots=2)

    def __init__(self, settings: AzureSettings, credential: Secret, http: HttpCalls) -> None:
        names = (settings.directory_id, settings.subscription_id, settings.resource_group, settings.account)
        if not all(_NAME.fullmatch(name) for name in names):
            raise SourceRefused("directory_id, subscription_id, resource_group and account must be plain names")
        if settings.in_use not in SLOTS:
            raise SourceRefused("in_use must be Key1 or Key2")
        self._http = http
        self._settings = settings
        self._credential = credential
        self._path = (
            f"/subscriptions/{quote(settings.subscription_id)}/resourceGroups/{quote(settings.resource_group)}"
            f"/providers/Microsoft.CognitiveServices/accounts/{quote(settings.account)}"
        )
        self._first = settings.in_use

    async def create(self, tag: str, *, in_use: str | None) -> ProviderKeyMade:
        """Regenerate the slot that is not in use."""
        del tag
        idle = SLOTS[1] if (in_use or self._first) == SLOTS[0] else SLOTS[0]
        path = f"{self._path}/regenerateKey?api-version={API_VERSION}"
        api = JsonApi(self._http, self._settings.base_url, {"authorization": f"Bearer {await self._token()}"})
        keys = await api.need("POST", path, _Keys, {"keyName": idle})
        return ProviderKeyMade(idle, Secret(keys.key1 if idle == SLOTS[0] else keys.key2))

    async def find(self, tag: str) -> ProviderKeyMade | None:
        """Nothing carries a tag."""
        del tag
        return None

    async def disable(self, ref: str) -> None:
        """Nothing."""

    async def enable(self, ref: str) -> None:
        """Nothing."""

    async def revoke(self, ref: str) -> None:
        """Nothing: the next rotation overwrites the slot."""

    async def _token(self) -> str:
        form = {
            "grant_type": "client_credentials",
            "client_id": self._settings.client_id,
            "client_secret": self._credential.reveal(),
            "scope": f"{self._settings.base_url}/.default",
        }
        url = f"{self._settings.login_url}/{self._settings.directory_id}/oauth2/v2.0/token"
        headers = {"content-type": "application/x-www-form-urlencoded"}
        answer = await self._http.call("POST", url, headers=headers, body=urlencode(form).encode())
        if answer.status >= 500 or answer.status == 429:
            raise SourceAway(f"Entra answered {answer.status}")
        if answer.status != 200:
            raise SourceRefused(f"Entra answered {answer.status}: check directory_id, client_id and the client secret")
        try:
            return msgspec.json.decode(answer.body, type=_Token).access_token
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SourceAway("Entra answered with something else than a token") from None
