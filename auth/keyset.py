"""Signing keys in memory: each key has one algorithm for life, and the public half travels as a JWKS (RFC 7517)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

# cryptography loads it at the first signature it looks at; a process without a file to spare could verify none.
import cryptography.hazmat.backends.openssl.backend  # noqa: F401
from joserfc import jwk, jws, jwt
from joserfc.errors import JoseError

ES256 = "ES256"
RS256 = "RS256"
ED25519 = "Ed25519"

DEFAULT_ALGORITHM = ES256
ALGORITHMS = (ES256, RS256, ED25519)
"""ES256 by default; RS256 must be available (RFC 9068 section 2.1); Ed25519 is the fully specified name of RFC 9864."""

AsymmetricKey = jwk.ECKey | jwk.RSAKey | jwk.OKPKey

_KEY_TYPES: Mapping[str, str] = MappingProxyType({ES256: "EC", RS256: "RSA", ED25519: "OKP"})


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A verification key: `alg` is pinned, whatever a token's header says (RFC 8725 section 3.1)."""

    kid: str
    alg: str
    key: AsymmetricKey = field(repr=False)

    @classmethod
    def from_jwk(cls, members: Mapping[str, Any]) -> PublicKey:
        """Read a public JWK that carries `kid` and `alg`; `ValueError` for anything else or for private members."""
        kid, alg = members.get("kid"), members.get("alg")
        if not isinstance(kid, str) or alg not in ALGORITHMS or members.get("kty") != _KEY_TYPES[alg]:
            raise ValueError(f"a public JWK needs kid, and alg out of {', '.join(ALGORITHMS)} with the matching kty")
        if "d" in members:
            raise ValueError("a public JWK holds no private members")
        return cls(kid=kid, alg=alg, key=_asymmetric(jwk.import_key(dict(members))))

    def jwk(self) -> dict[str, Any]:
        """Return the public JWK with `kid`, `alg` and `use`."""
        return {**self.key.as_dict(private=False), "kid": self.kid, "alg": self.alg, "use": "sig"}

    def verify(self, token: str) -> bytes | None:
        """Return the payload of a compact JWS (RFC 7515) if its signature is this key's, else None."""
        try:
            return jws.deserialize_compact(token, self.key, algorithms=[self.alg]).payload
        except (JoseError, ValueError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key that signs with its one algorithm; never printed."""

    kid: str
    alg: str
    key: AsymmetricKey = field(repr=False)

    @classmethod
    def generate(cls, alg: str = DEFAULT_ALGORITHM) -> Signer:
        """Create a key; its `kid` is the RFC 7638 thumbprint."""
        key: AsymmetricKey
        if alg == ES256:
            key = jwk.ECKey.generate_key("P-256")
        elif alg == RS256:
            key = jwk.RSAKey.generate_key(2048)
        elif alg == ED25519:
            key = jwk.OKPKey.generate_key("Ed25519")
        else:
            raise ValueError(f"alg must be one of {', '.join(ALGORITHMS)}")
        return cls(kid=key.thumbprint(), alg=alg, key=key)

    @classmethod
    def from_private_bytes(cls, kid: str, alg: str, der: bytes) -> Signer:
        """Read what `private_bytes` wrote."""
        if alg == ES256:
            return cls(kid, alg, jwk.ECKey.import_key(der))
        if alg == RS256:
            return cls(kid, alg, jwk.RSAKey.import_key(der))
        return cls(kid, alg, jwk.OKPKey.import_key(der))

    def private_bytes(self) -> bytes:
        """Return the private key as PKCS#8 DER: for a `Sealer` only."""
        return self.key.as_bytes(encoding="DER", private=True)

    def public(self) -> PublicKey:
        """Return the verification half."""
        return PublicKey.from_jwk({**self.key.as_dict(private=False), "kid": self.kid, "alg": self.alg})

    def sign(self, claims: Mapping[str, Any], *, typ: str) -> str:
        """Return a compact JWT with `kid`, `alg` and `typ` in its header."""
        header = {"alg": self.alg, "kid": self.kid, "typ": typ}
        return jwt.encode(header, dict(claims), self.key, algorithms=[self.alg])


class KeySet:
    """The verification keys by `kid`, replaced as a whole; `generation` moves with every change, so caches notice."""

    def __init__(self, keys: Iterable[PublicKey] = ()) -> None:
        self._keys: Mapping[str, PublicKey] = {key.kid: key for key in keys}
        self.generation = 0

    def get(self, kid: str) -> PublicKey | None:
        """Return the key named `kid`."""
        return self._keys.get(kid)

    def replace(self, keys: Iterable[PublicKey]) -> None:
        """Take `keys` as the whole set."""
        fresh = {key.kid: key for key in keys}
        if {kid: key.alg for kid, key in fresh.items()} != {kid: key.alg for kid, key in self._keys.items()}:
            self._keys = fresh
            self.generation += 1

    def jwks(self) -> dict[str, list[dict[str, Any]]]:
        """Return the JWK Set document (RFC 7517 section 5)."""
        return {"keys": [key.jwk() for key in self._keys.values()]}

    def __len__(self) -> int:
        return len(self._keys)


def _asymmetric(key: jwk.Key) -> AsymmetricKey:
    if not isinstance(key, AsymmetricKey):
        raise ValueError("a signing key is an EC, RSA or OKP key")
    return key
