"""A KEK that is an RSA key pair in PEM: `rsa:PATH`. Made for the spare wrap under a break-glass key.

The gateway is given the public half, which wraps; the private half lies in a safe and is named only to recover, and in
drills. RSAES-OAEP with SHA-256 (RFC 8017 section 7.1). The key is named by a digest of its public half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from tenants.errors import KekDisabled, KeyringUnsafe, SealBroken
from tenants.keyring import KekStatus, Wrapped
from tenants.wrappers.binding import bind, unbind

MIN_BITS: Final = 3072
_HINT: Final = (
    "Make a pair if there is none: openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:4096 -out break-glass.pem "
    "&& openssl pkey -in break-glass.pem -pubout -out break-glass.pub.pem"
)


class RsaKek:
    """`public` wraps; only with `private` does it unwrap."""

    def __init__(self, public: RSAPublicKey, private: RSAPrivateKey | None = None) -> None:
        if public.key_size < MIN_BITS:
            raise KeyringUnsafe(f"The RSA key has {public.key_size} bits, fewer than {MIN_BITS}.", hint=_HINT)
        spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.uri: str = f"rsa://{hashlib.sha256(spki).hexdigest()[:12]}"
        self._public, self._private = public, private

    def opens(self, kek_uri: str) -> bool:
        """Tell whether it is this pair and the private half is here."""
        return kek_uri == self.uri and self._private is not None

    async def wrap(self, context: Sequence[str], plaintext: bytes) -> Wrapped:
        """Encrypt under the public half, bound to the context."""
        return Wrapped(self.uri, self._public.encrypt(bind(context, plaintext), _padding()))

    async def unwrap(self, context: Sequence[str], wrapped: Wrapped) -> bytes:
        """Decrypt with the private half."""
        if self._private is None or wrapped.kek_uri != self.uri:
            raise KekDisabled(
                "The private half of this key is not here.",
                hint="Name the PEM file of the private key.",
                debug=wrapped.kek_uri,
            )
        try:
            return unbind(context, self._private.decrypt(wrapped.blob, _padding()))
        except ValueError:
            raise SealBroken("the wrapped data key was changed or moved to another row") from None

    async def status(self, kek_uri: str) -> KekStatus:
        """Nobody can disable a key pair: it is enabled, if it is the one meant."""
        return "enabled" if kek_uri == self.uri else "disabled"


def load_rsa_kek(path: Path) -> RsaKek:
    """Read a PEM file that holds a public key, or a private one without a passphrase."""
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise KeyringUnsafe(
            f"The RSA key {path} cannot be read: {error.strerror}.", hint=f"Name the PEM file of the pair. {_HINT}"
        ) from None
    try:
        if b"PRIVATE KEY-----" in pem:
            private = load_pem_private_key(pem, password=None)
            if isinstance(private, RSAPrivateKey):
                return RsaKek(private.public_key(), private)
        else:
            public = load_pem_public_key(pem)
            if isinstance(public, RSAPublicKey):
                return RsaKek(public)
    except TypeError:
        raise KeyringUnsafe(
            f"The RSA key {path} is under a passphrase.",
            hint=f"Take it off for as long as it is needed: openssl pkey -in {path} -out /dev/shm/break-glass.pem",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        pass
    raise KeyringUnsafe(f"{path} is not an RSA key in PEM.", hint=_HINT)


def _padding() -> OAEP:
    return OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)
