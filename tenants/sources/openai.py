"""OpenAI: one service account of a project for each key (Administration API, service accounts and project keys).

    POST   /v1/organization/projects/{project}/service_accounts        {"name"} → account and its key, shown once
    GET    /v1/organization/projects/{project}/service_accounts        list, to find one by its name
    DELETE /v1/organization/projects/{project}/service_accounts/{id}   deletes the account with its keys

The account's name is the tag. A key's secret is never shown again. OpenAI cannot disable a key, only delete it.
"""

from __future__ import annotations

from urllib.parse import quote

from msgspec import Struct

from auth.secret import Secret
from tenants.sources.json_calls import JsonApi
from tenants.sources.protocol import Capabilities, HttpCalls, ProviderKeyMade, SourceUnknown

MAX_PAGES = 200


class OpenAISettings(Struct, frozen=True, forbid_unknown_fields=True):
    """`project_id` is the project whose limits the keys draw on."""

    project_id: str
    base_url: str = "https://api.openai.com"


class _Key(Struct):
    value: str


class _Account(Struct):
    id: str
    name: str = ""
    api_key: _Key | None = None


class _Accounts(Struct):
    data: list[_Account]
    has_more: bool = False
    last_id: str | None = None


class OpenAIDriver:
    """Needs an admin key with the right to manage the project's service accounts."""

    capabilities = Capabilities()

    def __init__(self, settings: OpenAISettings, credential: Secret, http: HttpCalls) -> None:
        self._api = JsonApi(http, settings.base_url, {"authorization": f"Bearer {credential.reveal()}"})
        self._path = f"/v1/organization/projects/{quote(settings.project_id, safe='')}/service_accounts"

    async def create(self, tag: str, *, in_use: str | None) -> ProviderKeyMade:
        """Make a service account with its key."""
        del in_use
        made = await self._api.need("POST", self._path, _Account, {"name": tag})
        return ProviderKeyMade(made.id, Secret(made.api_key.value) if made.api_key else None)

    async def find(self, tag: str) -> ProviderKeyMade | None:
        """Look through the project's accounts."""
        after = ""
        for _ in range(MAX_PAGES):
            page = await self._api.need("GET", f"{self._path}?limit=100{after}", _Accounts)
            for account in page.data:
                if account.name == tag:
                    return ProviderKeyMade(account.id, None)
            if not page.has_more or page.last_id is None:
                return None
            after = f"&after={quote(page.last_id, safe='')}"
        raise SourceUnknown(f"the project has more than {MAX_PAGES * 100} service accounts: delete unused ones")

    async def disable(self, ref: str) -> None:
        """Nothing: see the module's first lines."""

    async def enable(self, ref: str) -> None:
        """Nothing."""

    async def revoke(self, ref: str) -> None:
        """Delete the account with its keys."""
        await self._api.call("DELETE", f"{self._path}/{quote(ref, safe='')}", dict)
