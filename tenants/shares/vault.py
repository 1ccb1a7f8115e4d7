"""Shares in a version 2 KV engine of HashiCorp Vault or OpenBao: `vault://host[:port]/<mount>/<path>`.

    GET    /v1/<mount>/data/<path>/<tenant id>           → {"data": {"data": {"share"}}}
    POST   /v1/<mount>/data/<path>/<tenant id>           {"options": {"cas": 0}, "data": …}: only if there is none
    DELETE /v1/<mount>/metadata/<path>/<tenant id>       every version, for good
    GET    /v1/<mount>/metadata/<path>/shredded?list=true

The note of a shredded tenant is the entry `<path>/shredded/<tenant id>`. Snapshots of the Vault itself hold the shares
of their time: keep them shorter than you may keep a deleted tenant's data.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID

from msgspec import Struct

from auth.secret import Secret
from tenants.errors import KekUnavailable, KeyringUnsafe
from tenants.shares.protocol import SHARE_BYTES, RandomBytes, ShareMissing, Shredded
from tenants.sources.json_calls import JsonApi
from tenants.sources.protocol import HttpCalls, SourceAway, SourceRefused

T = TypeVar("T")

_URI: Final = re.compile(r"vault://(?P<host>[A-Za-z0-9.-]+(?::\d+)?)/(?P<mount>[\w.-]+)/(?P<path>[\w./-]*[\w.-])")


class _Entry(Struct):
    data: dict[str, str]


class _Read(Struct):
    data: _Entry


class _Keys(Struct):
    keys: list[str]


class _Listed(Struct):
    data: _Keys


class VaultShares:
    """`token` gives the current Vault token; `scheme` may be "http" for an agent on the same host."""

    def __init__(
        self,
        uri: str,
        http: HttpCalls,
        token: Callable[[], Secret],
        *,
        scheme: str = "https",
        random_bytes: RandomBytes = os.urandom,
    ) -> None:
        found = _URI.fullmatch(uri)
        if found is None:
            raise KeyringUnsafe(
                "The place of the tenants' shares is malformed.", hint="Write it as vault://host:8200/secret/llm-proxy."
            )
        self.uri = uri
        self._base_url = f"{scheme}://{found['host']}"
        self._mount, self._path = found["mount"], found["path"]
        self._http, self._token, self._random_bytes = http, token, random_bytes

    async def get(self, tenant_id: UUID) -> bytes:
        """Read the entry."""
        share = await self._read(tenant_id)
        if share is None:
            raise Shredded(tenant_id) if await self._noted(tenant_id) else ShareMissing(tenant_id)
        return share

    async def get_or_create(self, tenant_id: UUID) -> bytes:
        """Read the entry, or put one where none is."""
        if await self._noted(tenant_id):
            raise Shredded(tenant_id)
        share = await self._read(tenant_id)
        if share is not None:
            return share
        drawn = base64.b64encode(self._random_bytes(SHARE_BYTES)).decode()
        await self._put(str(tenant_id), {"share": drawn})
        if await self._noted(tenant_id):  # destroyed in the meantime: what was made here must not stay
            await self._call("DELETE", f"metadata/{self._path}/{tenant_id}", dict)
            raise Shredded(tenant_id)
        return await self.get(tenant_id)

    async def destroy(self, tenant_id: UUID, *, at: datetime) -> None:
        """Write the note, then delete every version."""
        await self._put(f"shredded/{tenant_id}", {"at": at.astimezone(UTC).isoformat()})
        await self._call("DELETE", f"metadata/{self._path}/{tenant_id}", dict)

    async def shredded(self) -> Mapping[UUID, datetime]:
        """Read the notes, one call each; one whose share is still there is not done and is left out."""
        listed = await self._call("GET", f"metadata/{self._path}/shredded?list=true", _Listed)
        found = {}
        for name in [] if listed is None else listed.data.keys:
            tenant_id = UUID(name)
            note = await self._call("GET", f"data/{self._path}/shredded/{name}", _Read)
            if note is not None and await self._read(tenant_id) is None:
                found[tenant_id] = datetime.fromisoformat(note.data.data["at"])
        return found

    async def _read(self, tenant_id: UUID) -> bytes | None:
        found = await self._call("GET", f"data/{self._path}/{tenant_id}", _Read)
        if found is None:
            return None
        try:
            share = base64.b64decode(found.data.data.get("share", ""), validate=True)
        except binascii.Error:
            share = b""
        if len(share) != SHARE_BYTES:
            raise ShareMissing(tenant_id)
        return share

    async def _noted(self, tenant_id: UUID) -> bool:
        return await self._call("GET", f"data/{self._path}/shredded/{tenant_id}", _Read) is not None

    async def _put(self, name: str, data: Mapping[str, str]) -> None:
        """Write an entry unless there is one: whoever was first is right."""
        body = {"options": {"cas": 0}, "data": data}
        try:
            await self._api().need("POST", f"/v1/{self._mount}/data/{self._path}/{name}", dict[str, Any], body)
        except SourceAway as error:
            raise _away(error) from error
        except SourceRefused as error:
            if await self._call("GET", f"data/{self._path}/{name}", _Read) is None:
                raise _refused(error) from error

    async def _call(self, method: str, path: str, shape: type[T]) -> T | None:
        try:
            return await self._api().call(method, f"/v1/{self._mount}/{path}", shape)
        except SourceAway as error:
            raise _away(error) from error
        except SourceRefused as error:
            raise _refused(error) from error

    def _api(self) -> JsonApi:
        return JsonApi(self._http, self._base_url, {"x-vault-token": self._token().reveal()})


def _away(error: SourceAway) -> KekUnavailable:
    return KekUnavailable("The store of the tenants' shares does not answer.", debug=str(error))


def _refused(error: SourceRefused) -> KekUnavailable:
    return KekUnavailable(
        "The store of the tenants' shares refused.",
        hint="Give the gateway's Vault policy `create`, `read`, `update` on data/ and `delete`, `list`, `read` on "
        "metadata/ below the path.",
        debug=str(error),
    )
