"""KEKs in AWS KMS: `awskms://<region>/<key id, alias/… or ARN>`, with the context as encryption context.

    POST https://kms.<region>.amazonaws.com/   X-Amz-Target: TrentService.Encrypt | Decrypt | DescribeKey   (JSON 1.1)

Requests are signed with Signature Version 4, so no SDK is needed. The encryption context is bound to the ciphertext and
shown in CloudTrail: it holds opaque ids only.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from tenants.errors import KekDisabled, KekUnavailable, KeyringUnsafe, SealBroken
from tenants.keyring import KekStatus, Wrapped
from tenants.sigv4 import signed_post
from tenants.sources.protocol import HttpCalls, SourceAway, SourceRefused
from tenants.wrappers.aws_identity import AwsCredentials, AwsCredentialSource

_URI: Final = re.compile(r"awskms://(?P<region>[a-z0-9-]+)/(?P<key>[\w:/-]+)")
_DISABLED: Final = frozenset({"DisabledException", "NotFoundException"})
_OFF: Final = frozenset({"Disabled", "PendingDeletion", "PendingReplicaDeletion", "PendingImport"})
_BROKEN: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})


class AwsKms:
    """`credentials` gives valid ones at each call, `now` the time with its zone; `endpoint` overrides the region's."""

    def __init__(
        self,
        uri: str,
        http: HttpCalls,
        credentials: AwsCredentialSource,
        *,
        now: Callable[[], datetime],
        endpoint: str | None = None,
    ) -> None:
        found = _URI.fullmatch(uri)
        if found is None:
            raise KeyringUnsafe(
                "The key-encryption key's URI is malformed.", hint="Write it as awskms://eu-central-1/alias/llm-proxy."
            )
        self._uri = uri
        self._region, self._key = found["region"], found["key"]
        self._endpoint = endpoint or f"https://kms.{self._region}.amazonaws.com/"
        self._http, self._credentials, self._now = http, credentials, now

    @property
    def uri(self) -> str:
        """The key; KMS keeps its backing versions to itself."""
        return self._uri

    def opens(self, kek_uri: str) -> bool:
        """Tell whether it is this key."""
        return kek_uri == self._uri

    async def wrap(self, context: Sequence[str], plaintext: bytes) -> Wrapped:
        """Encrypt."""
        answer = await self._call("Encrypt", {"Plaintext": _b64(plaintext), "EncryptionContext": _context(context)})
        return Wrapped(self._uri, _unb64(answer.get("CiphertextBlob")))

    async def unwrap(self, context: Sequence[str], wrapped: Wrapped) -> bytes:
        """Decrypt, by this key alone."""
        body = {"CiphertextBlob": _b64(wrapped.blob), "EncryptionContext": _context(context)}
        return _unb64((await self._call("Decrypt", body)).get("Plaintext"))

    async def status(self, kek_uri: str) -> KekStatus:
        """Ask for the key's state."""
        del kek_uri
        try:
            described = await self._call("DescribeKey", {})
        except KekDisabled:
            return "disabled"
        metadata = described.get("KeyMetadata")
        state = metadata.get("KeyState") if isinstance(metadata, dict) else None
        if state in _OFF:
            return "disabled"
        if state == "Enabled":
            return "enabled"
        raise KekUnavailable("The key-encryption key is not ready.", debug=f"its state is {str(state)[:40]!r}")

    async def _call(self, action: str, members: Mapping[str, Any]) -> dict[str, Any]:
        body = msgspec.json.encode({"KeyId": self._key, **members})
        target = f"TrentService.{action}"
        credentials = await self._credentials()
        headers = signed_headers(
            self._endpoint, body, target, region=self._region, credentials=credentials, now=self._now()
        )
        try:
            answer = await self._http.call("POST", self._endpoint, headers=headers, body=body)
        except (SourceAway, SourceRefused) as error:
            raise KekUnavailable("The key-encryption key's provider does not answer.", debug=str(error)) from error
        try:
            document: dict[str, Any] = msgspec.json.decode(answer.body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            document = {}
        if answer.status == 200:
            if not document:
                raise KekUnavailable("The key-encryption key's provider gave an answer that cannot be read.")
            return document
        kind = str(document.get("__type", "")).rpartition("#")[2]
        if kind in _BROKEN:
            raise SealBroken("the wrapped data key was changed or moved to another row")
        # An invalid state may also be a custom key store that is out of reach: only the state tells.
        if kind in _DISABLED or (kind == "KMSInvalidStateException" and await self.status(self._uri) == "disabled"):
            raise KekDisabled(
                "The key-encryption key is disabled.", hint="Enable the key in KMS.", debug=f"{action}: {kind}"
            )
        raise KekUnavailable(
            "The key-encryption key's provider refused.",
            hint="Check the gateway's rights on the key: kms:Encrypt, kms:Decrypt, kms:DescribeKey.",
            debug=f"{action}: {answer.status} {kind}",
        )


def signed_headers(
    url: str, body: bytes, target: str, *, region: str, credentials: AwsCredentials, now: datetime
) -> dict[str, str]:
    """Return the headers of a signed POST to KMS (AWS Signature Version 4)."""
    headers = {"content-type": "application/x-amz-json-1.1", "x-amz-target": target}
    return signed_post(url, body, headers, service="kms", region=region, credentials=credentials, now=now)


def _context(context: Sequence[str]) -> dict[str, str]:
    return {f"llm-proxy-{index}": part for index, part in enumerate(context)}


def _b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _unb64(value: Any) -> bytes:
    try:
        found = base64.b64decode(value if isinstance(value, str) else "", validate=True)
    except binascii.Error:
        found = b""
    if not found:
        raise KekUnavailable("The key-encryption key's provider gave an answer that cannot be read.")
    return found
