"""Key management services in memory, as `HttpCalls`: what each one documents, associated data included."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tenants.sources.protocol import HttpAnswer, SourceAway

TOKEN = "hvs.test-token"


def answer(status: int, document: Any) -> HttpAnswer:
    return HttpAnswer(status, {}, json.dumps(document).encode())


@dataclass
class Transit:
    """One Transit key; `kept` are its ciphertexts with the version and associated data they need."""

    latest: int = 1
    least: int = 1
    away: bool = False
    deleted: bool = False
    kept: dict[str, tuple[str, str, int]] = field(default_factory=dict)

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        if self.away:
            raise SourceAway("no answer")
        if (headers or {}).get("x-vault-token") != TOKEN:
            return answer(403, {"errors": ["permission denied"]})
        if self.deleted:
            return answer(404, {"errors": []})
        sent = json.loads(body or b"{}")
        if "/encrypt/" in url:
            text = f"vault:v{self.latest}:{base64.b64encode(str(len(self.kept)).encode()).decode()}"
            self.kept[text] = (sent["plaintext"], sent["associated_data"], self.latest)
            return answer(200, {"data": {"ciphertext": text, "key_version": self.latest}})
        if "/decrypt/" in url:
            plain, associated, version = self.kept.get(sent["ciphertext"], ("", "", 0))
            if version < self.least or associated != sent["associated_data"]:
                return answer(400, {"errors": ["cipher: message authentication failed"]})
            return answer(200, {"data": {"plaintext": plain}})
        return answer(200, {"data": {"latest_version": self.latest, "min_decryption_version": self.least}})


@dataclass
class Kms:
    """One KMS key."""

    state: str = "Enabled"
    away: bool = False
    kept: dict[str, tuple[str, Any]] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        if self.away:
            raise SourceAway("no answer")
        told = dict(headers or {})
        if not told["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/"):
            return answer(400, {"__type": "com.amazonaws#UnrecognizedClientException"})
        sent = json.loads(body or b"{}")
        action = told["x-amz-target"].removeprefix("TrentService.")
        self.targets.append(action)
        if self.state == "Gone":
            return answer(400, {"__type": "NotFoundException"})
        if action == "DescribeKey":
            return answer(200, {"KeyMetadata": {"KeyState": self.state}})
        if self.state in ("Unavailable", "PendingDeletion"):
            return answer(400, {"__type": "KMSInvalidStateException"})
        if self.state != "Enabled":
            return answer(400, {"__type": "com.amazonaws.kms#DisabledException"})
        if action == "Encrypt":
            blob = base64.b64encode(f"blob-{len(self.kept)}".encode()).decode()
            self.kept[blob] = (sent["Plaintext"], sent["EncryptionContext"])
            return answer(200, {"CiphertextBlob": blob})
        plain, context = self.kept.get(sent["CiphertextBlob"], ("", None))
        if context != sent["EncryptionContext"]:
            return answer(400, {"__type": "com.amazonaws.kms#InvalidCiphertextException"})
        return answer(200, {"Plaintext": plain})


GCP_KEY = "projects/acme/locations/europe-west6/keyRings/gateway/cryptoKeys/llm-proxy"
GCP_TOKEN = "ya29.test-token"


def google_error(status: int, kind: str, message: str) -> HttpAnswer:
    return answer(status, {"error": {"code": status, "message": message, "status": kind}})


@dataclass
class GoogleKms:
    """One symmetric key of Cloud KMS (REST v1) with its versions; sums are checked and given as documented."""

    primary: int = 1
    states: dict[int, str] = field(default_factory=lambda: {1: "ENABLED"})
    away: bool = False
    deleted: bool = False
    flips: bool = False
    kept: dict[str, tuple[str, str, int]] = field(default_factory=dict)

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        if self.away:
            raise SourceAway("no answer")
        if (headers or {}).get("authorization") != f"Bearer {GCP_TOKEN}":
            return google_error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        path = url.removeprefix("https://cloudkms.googleapis.com/v1/")
        if self.deleted or not path.startswith(GCP_KEY):
            return google_error(404, "NOT_FOUND", f"CryptoKey {path.partition(':')[0]} not found.")
        rest = path.removeprefix(GCP_KEY)
        if method == "GET":
            if rest.startswith("/cryptoKeyVersions/"):
                return answer(200, {"name": path, "state": self.states[int(rest.rpartition("/")[2])]})
            primary = {"name": f"{path}/cryptoKeyVersions/{self.primary}", "state": self.states[self.primary]}
            return answer(200, {"name": path, "purpose": "ENCRYPT_DECRYPT", "primary": primary})
        sent = json.loads(body or b"{}")
        for name in ("plaintext", "ciphertext", "additionalAuthenticatedData"):
            if name in sent and sent[f"{name}Crc32c"] != self.sum(sent[name]):
                return google_error(400, "INVALID_ARGUMENT", f"The checksum in field {name}_crc32c did not match.")
        bound = sent["additionalAuthenticatedData"]
        if rest == ":encrypt":
            return self.encrypt(path.partition(":")[0], sent["plaintext"], bound)
        assert rest == ":decrypt"
        plain, associated, version = self.kept.get(sent["ciphertext"], ("", "", 0))
        if version and self.states[version] != "ENABLED":
            return self.off(path, version)
        if not version or associated != bound:
            return google_error(400, "INVALID_ARGUMENT", "Decryption failed: the ciphertext is invalid.")
        return answer(
            200, {"plaintext": plain, "plaintextCrc32c": self.sum(plain, out=True), "protectionLevel": "SOFTWARE"}
        )

    def encrypt(self, key: str, plain: str, bound: str) -> HttpAnswer:
        if self.states[self.primary] != "ENABLED":
            return self.off(key, self.primary)
        text = base64.b64encode(b"gcp-" + str(len(self.kept)).encode()).decode()
        self.kept[text] = (plain, bound, self.primary)
        return answer(
            200,
            {
                "name": f"{key}/cryptoKeyVersions/{self.primary}",
                "ciphertext": text,
                "ciphertextCrc32c": self.sum(text, out=True),
                "verifiedPlaintextCrc32c": True,
                "verifiedAdditionalAuthenticatedDataCrc32c": True,
                "protectionLevel": "SOFTWARE",
            },
        )

    def off(self, key: str, version: int) -> HttpAnswer:
        name = f"{key.partition(':')[0]}/cryptoKeyVersions/{version}"
        return google_error(
            400, "FAILED_PRECONDITION", f"{name} is not enabled, current state is: {self.states[version]}."
        )

    def sum(self, text: str, *, out: bool = False) -> str:
        found = crc32c_by_table(base64.b64decode(text))
        return str(found ^ 1 if out and self.flips else found)


def _table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [(value >> 1) ^ (0x82F63B78 if value & 1 else 0) for value in table]
    return table


_CRC_TABLE = _table()


def crc32c_by_table(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


AZURE_TOKEN = "eyJ.entra.token"


def azure_error(status: int, code: str, message: str, inner: str | None = None) -> HttpAnswer:
    error: dict[str, Any] = {"code": code, "message": message}
    if inner is not None:
        error["innererror"] = {"code": inner}
    return answer(status, {"error": error})


@dataclass
class KeyVault:
    """One key of Key Vault (REST 7.4) with its versions, the newest last; `kty` RSA or oct-HSM."""

    kty: str = "RSA"
    versions: dict[str, bool] = field(default_factory=lambda: {"0698c2156c1a4e1da5b6bab6f6422fd6": True})
    away: bool = False
    deleted: bool = False
    kept: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        if self.away:
            raise SourceAway("no answer")
        if (headers or {}).get("authorization") != f"Bearer {AZURE_TOKEN}":
            return azure_error(401, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.")
        path, _, query = url.removeprefix("https://my-vault.vault.azure.net/keys/").partition("?")
        assert query == "api-version=7.4", url
        self.calls.append(f"{method} {path}")
        name, version, action = [*path.split("/"), "", ""][:3]
        if self.deleted or name != "llm-proxy" or (version and version not in self.versions):
            return azure_error(
                404, "KeyNotFound", f"A key with (name/id) {name}/{version} was not found in this vault."
            )
        version = version or list(self.versions)[-1]
        kid = f"https://my-vault.vault.azure.net/keys/{name}/{version}"
        if method == "GET":
            attributes = {"enabled": self.versions[version], "created": 1493942451, "recoveryLevel": "Recoverable"}
            key = {"kid": kid, "kty": self.kty, "key_ops": ["wrapKey", "unwrapKey"]}
            return answer(200, {"key": key, "attributes": attributes})
        sent = json.loads(body or b"{}")
        if sent["alg"] != ("RSA-OAEP-256" if self.kty.startswith("RSA") else "A256KW") or "=" in sent["value"]:
            return azure_error(400, "BadParameter", "Property has invalid value")
        if action == "wrapkey":  # also under a disabled key: Key Vault only refuses to unwrap
            value = base64.urlsafe_b64encode(f"azure-{len(self.kept)}".encode()).rstrip(b"=").decode()
            self.kept[value] = (sent["value"], version, sent["alg"])
            return answer(200, {"kid": kid, "value": value})
        assert action == "unwrapkey"
        if not self.versions[version]:
            return azure_error(403, "Forbidden", "Operation unwrapKey is not allowed on a disabled key.", "KeyDisabled")
        plain, wrapped_by, _ = self.kept.get(sent["value"], ("", "", ""))
        if wrapped_by != version:
            return azure_error(400, "BadParameter", "The parameter is incorrect.")
        return answer(200, {"kid": kid, "value": plain})
