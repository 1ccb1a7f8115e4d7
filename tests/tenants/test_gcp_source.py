"""Google's driver where a right is missing: what was made is not forgotten."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from auth.secret import Secret
from tenants.sources.gcp import GcpDriver, GcpSettings
from tenants.sources.protocol import HttpAnswer, SourceUnknown

PEM = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
ACCOUNT = Secret(json.dumps({"client_email": "a@p.iam.example", "private_key": PEM}))


class Google:
    """Makes and deletes keys, and refuses what ends with `refused`."""

    def __init__(self, refused: str) -> None:
        self.refused = refused
        self.keys: set[str] = set()

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        del headers, body
        status = 200
        answer: dict[str, Any] = {"access_token": "t"}
        if "oauth2." in url:
            pass
        elif url.endswith(self.refused):
            status, answer = 403, {"error": {"message": "permission denied"}}
        elif method == "POST":
            self.keys.add(url.partition("keyId=")[2])
            answer = {"name": "operations/1"}
        elif method == "DELETE":
            self.keys.discard(url.rsplit("/", 1)[1])
            answer = {"name": "operations/1"}
        elif "/operations/" in url:
            answer = {"name": "operations/1", "done": True}
        elif url.rsplit("/", 1)[1] in self.keys:
            answer = {"name": url}
        else:
            status = 404
        return HttpAnswer(status, {}, json.dumps(answer).encode())


async def at_once(_: float) -> None:
    """Do not wait."""


@pytest.mark.parametrize("refused", ["/keyString", "/operations/1"])
async def test_a_key_that_was_made_and_cannot_be_read_is_looked_for_and_removed(refused: str) -> None:
    google = Google(refused)
    driver = GcpDriver(GcpSettings(project="my-project"), ACCOUNT, google, lambda: 1e9, sleep=at_once)

    with pytest.raises(SourceUnknown):
        await driver.create("llm-proxy-1", in_use=None)
    google.refused = "/keyString"
    found = await driver.find("llm-proxy-1")
    assert found is not None
    assert found.secret is None
    await driver.revoke(found.ref)
    assert google.keys == set()
