"""Vault Transit and AWS KMS in memory, as `HttpCalls`: what each one documents, associated data included."""

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
        if action == "DescribeKey":
            return answer(200, {"KeyMetadata": {"KeyState": self.state}})
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
