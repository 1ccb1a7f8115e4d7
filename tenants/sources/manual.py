"""Keys that people make: the tenant supplies each new secret; Anthropic's old keys are switched off through its API.

    POST /v1/organizations/api_keys/{id}   {"status": "inactive" | "active" | "archived"}   (Anthropic Admin API)

For other providers nothing is called: the runbook tells to delete the old key at the provider.
"""

from __future__ import annotations

from urllib.parse import quote

from msgspec import Struct

from auth.secret import Secret
from tenants.sources.json_calls import JsonApi
from tenants.sources.protocol import Capabilities, HttpCalls, ProviderKeyMade, SourceRefused

ANTHROPIC_VERSION = "2023-06-01"


class ManualSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """`provider` "anthropic" with an admin key as credential lets the gateway switch old keys off."""

    provider: str = ""
    base_url: str = "https://api.anthropic.com"


class ManualDriver:
    """Makes nothing; disables and archives at Anthropic when it has an admin key."""

    def __init__(self, settings: ManualSettings, credential: Secret | None, http: HttpCalls) -> None:
        self._api = None
        if settings.provider == "anthropic" and credential is not None:
            headers = {"x-api-key": credential.reveal(), "anthropic-version": ANTHROPIC_VERSION}
            self._api = JsonApi(http, settings.base_url, headers)
        reaches = self._api is not None
        self.capabilities = Capabilities(mints=False, finds=False, disables=reaches, revokes=reaches)

    async def create(self, tag: str, *, in_use: str | None) -> ProviderKeyMade:
        """Refuse: a person makes the key."""
        del tag, in_use
        raise SourceRefused("a manual source cannot make keys: supply the new secret in the rotate request")

    async def find(self, tag: str) -> ProviderKeyMade | None:
        """Nothing carries a tag."""
        del tag
        return None

    async def disable(self, ref: str) -> None:
        """Make it inactive."""
        await self._set(ref, "inactive")

    async def enable(self, ref: str) -> None:
        """Make it active again."""
        await self._set(ref, "active")

    async def revoke(self, ref: str) -> None:
        """Archive it: Anthropic keeps archived keys for its records, and they never work again."""
        await self._set(ref, "archived")

    async def _set(self, ref: str, status: str) -> None:
        if self._api is not None:
            path = f"/v1/organizations/api_keys/{quote(ref, safe='')}"
            await self._api.call("POST", path, dict, {"status": status})
