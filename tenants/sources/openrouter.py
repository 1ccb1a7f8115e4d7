"""OpenRouter: keys by its management API.

POST   /api/v1/keys          {"name", "limit"?} → {"key", "data": {"hash"}}, the key shown once
GET    /api/v1/keys?offset=  list, to find one by its name
PATCH  /api/v1/keys/{hash}   {"disabled"}
DELETE /api/v1/keys/{hash}
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from msgspec import Struct

from auth.secret import Secret
from tenants.sources.json_calls import JsonApi
from tenants.sources.protocol import Capabilities, HttpCalls, ProviderKeyMade, SourceUnknown

MAX_PAGES = 200


class OpenRouterSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """`limit` is the key's spending limit in US dollars, None for none."""

    limit: float | None = None
    base_url: str = "https://openrouter.ai"


class _Described(Struct):
    hash: str
    name: str = ""


class _Made(Struct):
    data: _Described
    key: str | None = None


class _Listed(Struct):
    data: list[_Described]


class OpenRouterDriver:
    """Needs a management key."""

    capabilities = Capabilities(disables=True)

    def __init__(self, settings: OpenRouterSettings, credential: Secret, http: HttpCalls) -> None:
        self._api = JsonApi(http, settings.base_url, {"authorization": f"Bearer {credential.reveal()}"})
        self._limit = settings.limit

    async def create(self, tag: str, *, in_use: str | None) -> ProviderKeyMade:
        """Make a key that is called by its tag."""
        del in_use
        body: dict[str, Any] = {"name": tag} | ({} if self._limit is None else {"limit": self._limit})
        made = await self._api.need("POST", "/api/v1/keys", _Made, body)
        return ProviderKeyMade(made.data.hash, Secret(made.key) if made.key else None)

    async def find(self, tag: str) -> ProviderKeyMade | None:
        """Look through the keys, page by page."""
        offset = 0
        for _ in range(MAX_PAGES):
            page = await self._api.need("GET", f"/api/v1/keys?include_disabled=true&offset={offset}", _Listed)
            for key in page.data:
                if key.name == tag:
                    return ProviderKeyMade(key.hash, None)
            if not page.data:
                return None
            offset += len(page.data)
        raise SourceUnknown("the account has too many keys to look through: delete unused ones")

    async def disable(self, ref: str) -> None:
        """Switch the key off."""
        await self._api.call("PATCH", f"/api/v1/keys/{quote(ref, safe='')}", dict, {"disabled": True})

    async def enable(self, ref: str) -> None:
        """Switch it on again."""
        await self._api.call("PATCH", f"/api/v1/keys/{quote(ref, safe='')}", dict, {"disabled": False})

    async def revoke(self, ref: str) -> None:
        """Delete it."""
        await self._api.call("DELETE", f"/api/v1/keys/{quote(ref, safe='')}", dict)
