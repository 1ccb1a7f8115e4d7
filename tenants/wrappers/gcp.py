"""KEKs in Google Cloud KMS: `gcpkms://projects/<p>/locations/<l>/keyRings/<r>/cryptoKeys/<k>`.

    POST https://cloudkms.googleapis.com/v1/<key>:encrypt   {plaintext, additionalAuthenticatedData, …Crc32c}
         → {name: <key>/cryptoKeyVersions/<n>, ciphertext, ciphertextCrc32c, verifiedPlaintextCrc32c, …}
    POST …:decrypt   {ciphertext, additionalAuthenticatedData, …Crc32c} → {plaintext, plaintextCrc32c}
    GET  https://cloudkms.googleapis.com/v1/<key>[/cryptoKeyVersions/<n>] → {state} or {primary: {state}}

The context travels as additional authenticated data. Each side sends CRC-32C sums, so that a bit that flips on the way
is told from one that was changed at rest. The version that wrapped is part of the URI: `…/cryptoKeys/<k>#v3`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from auth.secret import Secret
from tenants.envelope import length_prefixed
from tenants.errors import KekDisabled, KekUnavailable, KeyringUnsafe, SealBroken
from tenants.keyring import KekStatus, Wrapped
from tenants.sources.protocol import HttpAnswer, HttpCalls, SourceAway, SourceRefused

ENDPOINT: Final = "https://cloudkms.googleapis.com"
_URI: Final = re.compile(r"gcpkms://(?P<key>projects/[\w:.-]+/locations/[\w-]+/keyRings/[\w-]+/cryptoKeys/[\w-]+)")
_VERSION: Final = re.compile(r"/cryptoKeyVersions/(\d+)$")
_OFF: Final = frozenset({"DISABLED", "DESTROYED", "DESTROY_SCHEDULED"})
_NOT_ENABLED: Final = re.compile(r"is not enabled, current state is: (?!ENABLED)\w+")


class GcpKms:
    """`token` gives an access token for Cloud KMS; `endpoint` overrides Google's."""

    def __init__(
        self, uri: str, http: HttpCalls, token: Callable[[], Awaitable[Secret]], *, endpoint: str = ENDPOINT
    ) -> None:
        found = _URI.fullmatch(uri)
        if found is None:
            raise KeyringUnsafe(
                "The key-encryption key's URI is malformed.",
                hint="Write it as gcpkms://projects/p/locations/europe-west6/keyRings/r/cryptoKeys/k.",
            )
        self._uri, self._key = uri, found["key"]
        self._http, self._token, self._endpoint = http, token, endpoint
        self._version = 1

    @property
    def uri(self) -> str:
        """The key at the version that was last used for wrapping."""
        return f"{self._uri}#v{self._version}"

    def opens(self, kek_uri: str) -> bool:
        """Tell whether it is this key, at any version."""
        return kek_uri.split("#", 1)[0] == self._uri

    async def wrap(self, context: Sequence[str], plaintext: bytes) -> Wrapped:
        """Encrypt under the primary version."""
        bound = _bound(context)
        answer = await self._call(
            f"{self._key}:encrypt", {"plaintext": plaintext, "additionalAuthenticatedData": bound}
        )
        blob = _checked(answer, "ciphertext")
        if answer.get("verifiedPlaintextCrc32c") is not True or (
            answer.get("verifiedAdditionalAuthenticatedDataCrc32c") is not True
        ):
            raise _damaged()
        version = _VERSION.search(str(answer.get("name", "")))
        if version is None:
            raise _unreadable()
        self._version = int(version[1])
        return Wrapped(self.uri, blob)

    async def unwrap(self, context: Sequence[str], wrapped: Wrapped) -> bytes:
        """Decrypt; the blob itself says under which version."""
        members = {"ciphertext": wrapped.blob, "additionalAuthenticatedData": _bound(context)}
        return _checked(await self._call(f"{self._key}:decrypt", members, wrapped.kek_uri), "plaintext")

    async def status(self, kek_uri: str) -> KekStatus:
        """Ask for the version's state, or the primary's."""
        _, _, version = kek_uri.partition("#v")
        path = f"{self._key}/cryptoKeyVersions/{version}" if version.isdigit() else self._key
        answer = await self._send("GET", path, None)
        if answer.status == 404:
            return "disabled"
        if answer.status != 200:
            raise _refused(answer)
        found: Any = _document(answer)
        if not version.isdigit():
            found = found.get("primary")
        state = found.get("state") if isinstance(found, dict) else None
        if state in _OFF:
            return "disabled"
        if state == "ENABLED":
            return "enabled"
        raise _unreadable()

    async def _call(self, path: str, members: Mapping[str, bytes], kek_uri: str = "") -> dict[str, Any]:
        body: dict[str, str] = {}
        for name, value in members.items():
            body[name] = base64.b64encode(value).decode()
            body[f"{name}Crc32c"] = str(crc32c(value))
        answer = await self._send("POST", path, msgspec.json.encode(body))
        if answer.status == 200:
            return _document(answer)
        error = _error(answer)
        kind, message = str(error.get("status", "")), str(error.get("message", ""))
        off = answer.status == 404 or _NOT_ENABLED.search(message) is not None
        # A failed precondition may also be an API that is not switched on: only the state tells.
        if not off and kind == "FAILED_PRECONDITION":
            off = await self.status(kek_uri or self._uri) == "disabled"
        if off:
            raise KekDisabled(
                "The key-encryption key is disabled.",
                hint="Enable the key version in Cloud KMS, or restore it.",
                debug=f"{answer.status} {kind}: {message[:200]}",
            )
        if kind == "INVALID_ARGUMENT" and path.endswith(":decrypt") and "crc32c" not in message.lower():
            raise SealBroken("the wrapped data key was changed or moved to another row")
        raise _refused(answer)

    async def _send(self, method: str, path: str, body: bytes | None) -> HttpAnswer:
        token = await self._token()
        headers = {"authorization": f"Bearer {token.reveal()}", "accept": "application/json"}
        if body is not None:
            headers["content-type"] = "application/json"
        try:
            return await self._http.call(method, f"{self._endpoint}/v1/{path}", headers=headers, body=body)
        except (SourceAway, SourceRefused) as error:
            raise KekUnavailable("The key-encryption key's provider does not answer.", debug=str(error)) from error


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of a few bytes (RFC 3720 appendix B.4): reflected 0x1EDC6F41."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _bound(context: Sequence[str]) -> bytes:
    return length_prefixed(*(part.encode() for part in context))


def _checked(answer: Mapping[str, Any], name: str) -> bytes:
    text = answer.get(name)
    try:
        value = base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except binascii.Error:
        raise _unreadable() from None
    if not value:
        raise _unreadable()
    if str(answer.get(f"{name}Crc32c")) != str(crc32c(value)):
        raise _damaged()
    return value


def _document(answer: HttpAnswer) -> dict[str, Any]:
    try:
        return msgspec.json.decode(answer.body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _unreadable() from None


def _error(answer: HttpAnswer) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(answer.body, type=dict[str, Any]).get("error")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _refused(answer: HttpAnswer) -> KekUnavailable:
    return KekUnavailable(
        "The key-encryption key's provider refused.",
        hint="Check the workload's rights on the key: roles/cloudkms.cryptoKeyEncrypterDecrypter and .viewer.",
        debug=f"{answer.status} {_error(answer).get('status', '')}",
    )


def _unreadable() -> KekUnavailable:
    return KekUnavailable("The key-encryption key's provider gave an answer that cannot be read.")


def _damaged() -> KekUnavailable:
    return KekUnavailable("The key-encryption key's provider and the gateway disagree about what was sent: CRC-32C.")
