"""The public keys that clients sign with: which JWKs are ones that a signature can be checked by. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from joserfc import jwk
from joserfc.errors import JoseError

ALGORITHMS_OF = {"EC": ("ES256",), "RSA": ("RS256", "PS256"), "OKP": ("Ed25519",)}
CURVES_OF = {"EC": "P-256", "OKP": "Ed25519"}
LEAST_RSA_BITS = 2048
_PUBLIC = {"kty", "crv", "x", "y", "n", "e"}


def public_key(members: Mapping[str, Any]) -> jwk.Key:
    """Read the public half of a JWK; `ValueError` says why no signature can be checked by it."""
    kind = str(members.get("kty"))
    if kind not in ALGORITHMS_OF:
        raise ValueError("must be an EC, RSA or OKP public key")
    if members.get("crv") != CURVES_OF.get(kind):
        raise ValueError(f"must be on the curve {CURVES_OF[kind]}" if kind in CURVES_OF else "is RSA and has a curve")
    if kind == "RSA" and _bits(str(members.get("n", ""))) < LEAST_RSA_BITS:
        raise ValueError(f"has fewer than {LEAST_RSA_BITS} bits")
    try:
        return jwk.import_key({name: value for name, value in members.items() if name in _PUBLIC})
    except (JoseError, ValueError, TypeError, KeyError):
        raise ValueError("is not a whole public key (RFC 7518 section 6)") from None


def _bits(number: str) -> int:
    """Return how long a number is that a JWK gives in base64url, 0 for what is none."""
    try:
        return int.from_bytes(base64.urlsafe_b64decode(number + "=" * (-len(number) % 4))).bit_length()
    except ValueError:
        return 0
