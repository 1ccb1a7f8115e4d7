"""xAI: keys of a team by its management API.

POST   /auth/teams/{team}/api-keys   {"name", "acls"} → {"apiKeyId", "apiKey"}, the key shown once
GET    /auth/teams/{team}/api-keys   list, to find one by its name
PUT    /auth/api-keys/{id}           {"apiKey": {"disabled"}, "fieldMask": "disabled"}
DELETE /auth/api-keys/{id}
"""

from __future__ import annotations

from urllib.parse import quote

from msgspec import Struct, field

from auth.secret import Secret
from tenants.sources.json_calls import JsonApi
from tenants.sources.protocol import Capabilities, HttpCalls, ProviderKeyMade, SourceUnknown

MAX_PAGES = 200


class XaiSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """`acls` are what the keys may do: all models and endpoints unless narrowed."""

    team_id: str
    acls: tuple[str, ...] = ("api-key:model:*", "api-key:endpoint:*")
    base_url: str = "https://management-api.x.ai"


class _Key(Struct, rename="camel"):
    api_key_id: str
    name: str = ""
    api_key: str | None = None


class _Keys(Struct, rename="camel"):
    api_keys: list[_Key] = field(default_factory=list)
    pagination_token: str | None = None


class XaiDriver:
    """Needs a management key of the team."""

    capabilities = Capabilities(disables=True)

    def __init__(self, settings: XaiSettings, credential: Secret, http: HttpCalls) -> None:
        self._api = JsonApi(http, settings.base_url, {"authorization": f"Bearer {credential.reveal()}"})
        self._team = f"/auth/teams/{quote(settings.team_id, safe='')}/api-keys"
        self._acls = settings.acls

    async def create(self, tag: str, *, in_use: str | None) -> ProviderKeyMade:
        """Make a key that is called by its tag."""
        del in_use
        made = await self._api.need("POST", self._team, _Key, {"name": tag, "acls": self._acls})
        return ProviderKeyMade(made.api_key_id, Secret(made.api_key) if made.api_key else None)

    async def find(self, tag: str) -> ProviderKeyMade | None:
        """Look through the team's keys, page by page."""
        token = ""
        for _ in range(MAX_PAGES):
            page = await self._api.need("GET", f"{self._team}?pageSize=100{token}", _Keys)
            for key in page.api_keys:
                if key.name == tag:
                    return ProviderKeyMade(key.api_key_id, None)
            if not page.pagination_token:
                return None
            token = f"&paginationToken={quote(page.pagination_token, safe='')}"
        raise SourceUnknown("the team has too many keys to look through: delete unused ones")

    async def disable(self, ref: str) -> None:
        """Switch the key off."""
        await self._switch(ref, disabled=True)

    async def enable(self, ref: str) -> None:
        """Switch it on again."""
        await self._switch(ref, disabled=False)

    async def revoke(self, ref: str) -> None:
        """Delete it."""
        await self._api.call("DELETE", f"/auth/api-keys/{quote(ref, safe='')}", dict)

    async def _switch(self, ref: str, *, disabled: bool) -> None:
        body = {"apiKey": {"disabled": disabled}, "fieldMask": "disabled"}
        await self._api.call("PUT", f"/auth/api-keys/{quote(ref, safe='')}", dict, body)
