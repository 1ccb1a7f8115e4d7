"""KEKs in Azure Key Vault or a managed HSM: `azurekv://<vault>[.vault.azure.net | .managedhsm.azure.net]/<key>`.

    GET  https://<host>/keys/<key>[/<version>]?api-version=7.4 → {key: {kid, kty}, attributes: {enabled}}
    POST …/keys/<key>/<version>/wrapkey     {alg, value} → {kid, value}          (base64url without padding)
    POST …/keys/<key>/<version>/unwrapkey   {alg, value} → {kid, value}

RSA keys wrap by RSA-OAEP-256, a managed HSM's AES keys by A256KW (RFC 3394). Neither takes associated data, so the
context goes inside (`tenants.wrappers.binding`). The URI names the version that wrapped: `…/<key>#<version>`. Key Vault
goes on wrapping under a disabled key and only refuses to unwrap, so the state is looked at first.

    blob = algorithm (1 byte: 1 RSA-OAEP-256, 2 A256KW) ‖ what the vault gave
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from tenants.errors import KekDisabled, KekUnavailable, KeyringUnsafe, SealBroken
from tenants.keyring import KekStatus, Wrapped
from tenants.sources.protocol import HttpAnswer, HttpCalls, SourceAway, SourceRefused
from tenants.wrappers.azure_identity import AzureTokens
from tenants.wrappers.binding import bind, unbind

API_VERSION: Final = "7.4"
DESCRIBED_FOR: Final = timedelta(minutes=1)
"""How long the newest version is believed to be the newest: a rewrap of many data keys asks once a minute."""
ALGORITHMS: Final = {1: "RSA-OAEP-256", 2: "A256KW"}
_BY_TYPE: Final = {"RSA": 1, "RSA-HSM": 1, "oct": 2, "oct-HSM": 2}
_URI: Final = re.compile(r"azurekv://(?P<host>[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*)/(?P<key>[A-Za-z0-9-]{1,127})")
_OFF: Final = frozenset({"KeyDisabled", "KeyNotFound", "KeyDeleted", "KeyExpired"})


@dataclass(frozen=True, slots=True)
class _Described:
    version: str
    algorithm: int
    enabled: bool


class AzureKeyVault:
    """`tokens` gives the source of tokens for the vault's resource, `now` the time; `endpoint` overrides the host."""

    def __init__(
        self,
        uri: str,
        http: HttpCalls,
        tokens: AzureTokens,
        *,
        now: Callable[[], datetime],
        endpoint: str | None = None,
    ) -> None:
        found = _URI.fullmatch(uri)
        if found is None:
            raise KeyringUnsafe(
                "The key-encryption key's URI is malformed.", hint="Write it as azurekv://my-vault/my-key."
            )
        host = found["host"].lower()
        if "." not in host:
            host += ".vault.azure.net"
        self._uri, self._key = f"azurekv://{host}/{found['key']}", found["key"]
        self._endpoint = endpoint or f"https://{host}"
        self._token = tokens(f"https://{host.partition('.')[2]}")
        self._http, self._now = http, now
        self._newest: _Described | None = None
        self._newest_until: datetime | None = None

    @property
    def uri(self) -> str:
        """The key at the version that was last used for wrapping."""
        return self._uri if self._newest is None else f"{self._uri}#{self._newest.version}"

    def opens(self, kek_uri: str) -> bool:
        """Tell whether it is this key, at any version."""
        return kek_uri.split("#", 1)[0] == self._uri

    async def wrap(self, context: Sequence[str], plaintext: bytes) -> Wrapped:
        """Wrap under the newest version."""
        key = await self._described()
        if not key.enabled:
            raise _disabled("the newest version")
        body = {"alg": ALGORITHMS[key.algorithm], "value": _b64(bind(context, plaintext))}
        answer = await self._send("POST", f"{self._key}/{key.version}/wrapkey", body)
        if answer.status != 200:
            raise self._refusal(answer)
        return Wrapped(f"{self._uri}#{key.version}", bytes([key.algorithm]) + _value(answer))

    async def unwrap(self, context: Sequence[str], wrapped: Wrapped) -> bytes:
        """Unwrap under the version that the URI names."""
        algorithm = ALGORITHMS.get(wrapped.blob[0]) if wrapped.blob else None
        version = _version_of(wrapped.kek_uri)
        if algorithm is None or version is None:
            raise SealBroken("the wrapped data key is malformed")
        body = {"alg": algorithm, "value": _b64(wrapped.blob[1:])}
        answer = await self._send("POST", f"{self._key}/{version}/unwrapkey", body)
        if answer.status == 400 and _code(answer) == "BadParameter":
            raise SealBroken("the wrapped data key was changed or moved to another row")
        if answer.status != 200:
            raise self._refusal(answer)
        return unbind(context, _value(answer))

    async def status(self, kek_uri: str) -> KekStatus:
        """Ask for the version, or the newest one."""
        version = _version_of(kek_uri)
        answer = await self._send("GET", self._key + (f"/{version}" if version else ""), None)
        if answer.status == 404 or _code(answer) in _OFF:
            return "disabled"
        if answer.status != 200:
            raise self._refusal(answer)
        return "enabled" if _describe(answer).enabled else "disabled"

    async def _described(self) -> _Described:
        now = self._now()
        if self._newest is None or self._newest_until is None or now >= self._newest_until:
            answer = await self._send("GET", self._key, None)
            if answer.status != 200:
                raise self._refusal(answer)
            self._newest, self._newest_until = _describe(answer), now + DESCRIBED_FOR
        return self._newest

    async def _send(self, method: str, path: str, body: dict[str, str] | None) -> HttpAnswer:
        token = await self._token()
        headers = {"authorization": f"Bearer {token.reveal()}", "accept": "application/json"}
        encoded = None
        if body is not None:
            headers["content-type"] = "application/json"
            encoded = msgspec.json.encode(body)
        url = f"{self._endpoint}/keys/{path}?api-version={API_VERSION}"
        try:
            return await self._http.call(method, url, headers=headers, body=encoded)
        except (SourceAway, SourceRefused) as error:
            raise KekUnavailable("The key-encryption key's provider does not answer.", debug=str(error)) from error

    def _refusal(self, answer: HttpAnswer) -> KekDisabled | KekUnavailable:
        code = _code(answer)
        if answer.status == 404 or code in _OFF:
            return _disabled(code)
        return KekUnavailable(
            "The key-encryption key's provider refused.",
            hint="Give the workload the role Key Vault Crypto Service Encryption User: get, wrapKey, unwrapKey.",
            debug=f"{answer.status} {code}",
        )


def _disabled(reason: str) -> KekDisabled:
    return KekDisabled(
        "The key-encryption key is disabled.", hint="Enable the key in Key Vault, or recover it.", debug=reason
    )


def _version_of(kek_uri: str) -> str | None:
    version = kek_uri.partition("#")[2]
    return version if re.fullmatch(r"[A-Za-z0-9]{1,64}", version) else None


def _describe(answer: HttpAnswer) -> _Described:
    document = _document(answer)
    key, attributes = document.get("key"), document.get("attributes")
    if not isinstance(key, dict) or not isinstance(attributes, dict):
        raise _unreadable()
    version = str(key.get("kid", "")).rpartition("/")[2]
    if not re.fullmatch(r"[A-Za-z0-9]{1,64}", version):
        raise _unreadable()
    algorithm = _BY_TYPE.get(str(key.get("kty")))
    if algorithm is None:
        raise KekUnavailable(
            f"A key of type {str(key.get('kty'))[:20]!r} cannot wrap.", hint="Make an RSA key, or AES in a managed HSM."
        )
    return _Described(version, algorithm, attributes.get("enabled") is True)


def _code(answer: HttpAnswer) -> str:
    """Return the innermost error code: `Forbidden` around `KeyDisabled`."""
    try:
        error = msgspec.json.decode(answer.body, type=dict[str, Any]).get("error")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    code = ""
    while isinstance(error, dict):
        code = str(error.get("code", code))
        error = error.get("innererror", error.get("innerError"))
    return code


def _document(answer: HttpAnswer) -> dict[str, Any]:
    try:
        return msgspec.json.decode(answer.body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _unreadable() from None


def _value(answer: HttpAnswer) -> bytes:
    given = _document(answer).get("value")
    text = given if isinstance(given, str) else ""
    try:
        found = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        found = b""
    if not found:
        raise _unreadable()
    return found


def _b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _unreadable() -> KekUnavailable:
    return KekUnavailable("The key-encryption key's provider gave an answer that cannot be read.")
