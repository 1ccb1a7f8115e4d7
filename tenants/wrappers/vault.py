"""KEKs in the Transit engine of HashiCorp Vault or OpenBao: `vault://host[:port]/<mount>/<key>`.

    POST /v1/<mount>/encrypt/<key>   {"plaintext", "associated_data"} → {"data": {"ciphertext": "vault:v1:…"}}
    POST /v1/<mount>/decrypt/<key>   {"ciphertext", "associated_data"} → {"data": {"plaintext"}}
    GET  /v1/<mount>/keys/<key>      → {"data": {"latest_version", "min_decryption_version", "soft_deleted"?}}

The context travels as associated data. Transit's own `rewrap` takes none, so a new key version is taken into use by
unwrapping and wrapping again. A blob names its key version, and so does its URI: `…/<key>#v3`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from msgspec import Struct

from auth.secret import Secret
from tenants.envelope import length_prefixed
from tenants.errors import KekDisabled, KekUnavailable, KeyringUnsafe, SealBroken
from tenants.keyring import KekStatus, Wrapped
from tenants.sources.json_calls import JsonApi
from tenants.sources.protocol import HttpCalls, SourceAway, SourceRefused

T = TypeVar("T")

_URI: Final = re.compile(r"vault://(?P<host>[A-Za-z0-9.-]+(?::\d+)?)/(?P<mount>[\w./-]+)/(?P<key>[\w.-]+)")
_BLOB: Final = re.compile(rb"vault:v(\d+):[A-Za-z0-9+/=]+")


class _Ciphertext(Struct):
    ciphertext: str


class _Plaintext(Struct):
    plaintext: str


class _Key(Struct):
    latest_version: int
    min_decryption_version: int = 1
    soft_deleted: bool = False


class _Encrypted(Struct):
    data: _Ciphertext


class _Decrypted(Struct):
    data: _Plaintext


class _Described(Struct):
    data: _Key


class VaultTransit:
    """`token` gives the current Vault token (a file that an agent renews, or a fixed one); `scheme` may be "http"."""

    def __init__(self, uri: str, http: HttpCalls, token: Callable[[], Secret], *, scheme: str = "https") -> None:
        found = _URI.fullmatch(uri)
        if found is None:
            raise KeyringUnsafe(
                "The key-encryption key's URI is malformed.", hint="Write it as vault://host:8200/transit/my-key."
            )
        self._uri = uri
        self._base_url = f"{scheme}://{found['host']}"
        self._mount, self._key = found["mount"], found["key"]
        self._http = http
        self._token = token
        self._version = 1

    @property
    def uri(self) -> str:
        """The key at the version that was last used for wrapping."""
        return f"{self._uri}#v{self._version}"

    def opens(self, kek_uri: str) -> bool:
        """Tell whether it is this key, at any version."""
        return kek_uri.split("#", 1)[0] == self._uri

    async def wrap(self, context: Sequence[str], plaintext: bytes) -> Wrapped:
        """Encrypt under the key's latest version."""
        body = {"plaintext": base64.b64encode(plaintext).decode(), "associated_data": _associated(context)}
        try:
            answer = await self._call(f"encrypt/{self._key}", _Encrypted, body)
        except SourceRefused as error:
            raise KekUnavailable(
                "The key-encryption key's provider refused.",
                hint="Give the gateway's Vault policy `update` on encrypt/ and decrypt/ of the key.",
                debug=str(error),
            ) from error
        blob = answer.data.ciphertext.encode()
        found = _BLOB.fullmatch(blob)
        if found is None:
            raise KekUnavailable("The key-encryption key's provider gave an answer that cannot be read.")
        self._version = int(found[1])
        return Wrapped(self.uri, blob)

    async def unwrap(self, context: Sequence[str], wrapped: Wrapped) -> bytes:
        """Decrypt; the blob itself says under which version."""
        body = {"ciphertext": wrapped.blob.decode("ascii", "replace"), "associated_data": _associated(context)}
        try:
            answer = await self._call(f"decrypt/{self._key}", _Decrypted, body, wrapped.kek_uri)
        except SourceRefused:
            raise SealBroken("the wrapped data key was changed or moved to another row") from None
        try:
            return base64.b64decode(answer.data.plaintext, validate=True)
        except binascii.Error:
            raise KekUnavailable("The key-encryption key's provider gave an answer that cannot be read.") from None

    async def status(self, kek_uri: str) -> KekStatus:
        """Ask for the key: gone, soft-deleted, or below the least version that may decrypt means disabled."""
        try:
            found = await self._api().call("GET", f"/v1/{self._mount}/keys/{self._key}", _Described)
        except SourceAway as error:
            raise _away(error) from error
        except SourceRefused as error:
            raise KekUnavailable(
                "The key-encryption key cannot be looked at.",
                hint="Give the gateway's Vault policy `read` on the key.",
                debug=str(error),
            ) from error
        if found is None or found.data.soft_deleted:
            return "disabled"
        _, _, version = kek_uri.partition("#v")
        too_old = version.isdigit() and int(version) < found.data.min_decryption_version
        return "disabled" if too_old else "enabled"

    async def _call(self, path: str, shape: type[T], body: dict[str, str], kek_uri: str | None = None) -> T:
        try:
            return await self._api().need("POST", f"/v1/{self._mount}/{path}", shape, body)
        except SourceAway as error:
            raise _away(error) from error
        except SourceRefused as error:
            # Refused for want of a right or a token, the key itself may be well: only its status tells that it is not.
            if await self.status(kek_uri or self._uri) == "disabled":
                raise KekDisabled(
                    "The key-encryption key is disabled.",
                    hint="Restore the key in Vault, or lower its least decryption version.",
                    debug=str(error),
                ) from error
            raise

    def _api(self) -> JsonApi:
        return JsonApi(self._http, self._base_url, {"x-vault-token": self._token().reveal()})


def _associated(context: Sequence[str]) -> str:
    return base64.b64encode(length_prefixed(*(part.encode() for part in context))).decode()


def _away(error: SourceAway) -> KekUnavailable:
    return KekUnavailable("The key-encryption key's provider does not answer.", debug=str(error))
