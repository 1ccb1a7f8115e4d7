"""Key-encryption keys: what wraps data keys, and the local keyring (a file or an environment variable).

`KeyWrapper` is the one face of every KEK provider. A wrapped blob names the KEK that wrapped it by URI, so that several
KEKs can be in use while data keys are rewrapped. Contexts carry opaque ids only: a KMS shows them in its logs.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tenants.envelope import KEY_BYTES, NONCE_BYTES, RandomBytes, length_prefixed
from tenants.errors import KekDisabled, KeyringUnsafe, SealBroken

KekStatus = Literal["enabled", "disabled"]


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A data key as stored: `kek_uri` says which KEK opens `blob`."""

    kek_uri: str
    blob: bytes


class KeyWrapper(Protocol):
    """One KEK provider.

    Every call raises `KekUnavailable` when the provider does not answer and `KekDisabled` when it refuses the key;
    `unwrap` raises `SealBroken` for a changed blob or another context.
    """

    @property
    def uri(self) -> str:
        """The KEK that `wrap` uses now."""
        ...

    def opens(self, kek_uri: str) -> bool:
        """Tell whether `unwrap` knows the KEK named `kek_uri`."""
        ...

    async def wrap(self, context: Sequence[str], plaintext: bytes) -> Wrapped:
        """Encrypt a data key under the current KEK, bound to `context`."""
        ...

    async def unwrap(self, context: Sequence[str], wrapped: Wrapped) -> bytes:
        """Decrypt a data key."""
        ...

    async def status(self, kek_uri: str) -> KekStatus:
        """Tell whether the KEK may be used."""
        ...


SCHEME: Final = "local"
_BLOB_VERSION: Final = b"\x01"
_MIN_BLOB: Final = 1 + NONCE_BYTES + 16


class LocalKeyring:
    """KEKs held in this process: the in-memory twin of the KMS wrappers, and what file and environment load into.

    The first key wraps; all of them unwrap. A key is named by a digest of itself (`local://<12 hex>`), so a keyring may
    move between a file and the environment, and be reordered, without touching a stored row.
    """

    def __init__(self, keys: Iterable[bytes], *, random_bytes: RandomBytes = os.urandom) -> None:
        self._keys = {kek_name(key): key for key in keys}
        if not self._keys:
            raise KeyringUnsafe("The keyring holds no key.", hint="Put one line of 32 random bytes in base64 into it.")
        self._disabled: set[str] = set()
        self._random_bytes = random_bytes
        self._primary = next(iter(self._keys))

    @property
    def uri(self) -> str:
        """The first key's name."""
        return self._primary

    @property
    def uris(self) -> tuple[str, ...]:
        """Every key's name, the wrapping one first."""
        return tuple(self._keys)

    def opens(self, kek_uri: str) -> bool:
        """Tell whether the keyring holds the key."""
        return kek_uri in self._keys

    def disable(self, kek_uri: str) -> None:
        """Refuse a key from now on, as a KMS does when its operator disables it."""
        self._disabled.add(kek_uri)

    def enable(self, kek_uri: str) -> None:
        """Undo `disable`."""
        self._disabled.discard(kek_uri)

    async def wrap(self, context: Sequence[str], plaintext: bytes) -> Wrapped:
        """AES-256-GCM under the first key with a random nonce: far fewer wraps than the 2^32 bound for one key."""
        nonce = self._random_bytes(NONCE_BYTES)
        sealed = AESGCM(self._key(self._primary)).encrypt(nonce, plaintext, _aad(self._primary, context))
        return Wrapped(self._primary, _BLOB_VERSION + nonce + sealed)

    async def unwrap(self, context: Sequence[str], wrapped: Wrapped) -> bytes:
        """Open what `wrap` gave."""
        key = self._key(wrapped.kek_uri)
        if len(wrapped.blob) < _MIN_BLOB or wrapped.blob[:1] != _BLOB_VERSION:
            raise SealBroken("the wrapped data key is malformed")
        nonce, sealed = wrapped.blob[1 : 1 + NONCE_BYTES], wrapped.blob[1 + NONCE_BYTES :]
        try:
            return AESGCM(key).decrypt(nonce, sealed, _aad(wrapped.kek_uri, context))
        except InvalidTag:
            raise SealBroken("the wrapped data key was changed or moved to another row") from None

    async def status(self, kek_uri: str) -> KekStatus:
        """Tell whether the key is here and not disabled."""
        return "enabled" if kek_uri in self._keys and kek_uri not in self._disabled else "disabled"

    def _key(self, kek_uri: str) -> bytes:
        if kek_uri in self._disabled or kek_uri not in self._keys:
            raise KekDisabled(
                "The key-encryption key of this data is not available.",
                hint="Add the missing key to the keyring again, after the current one.",
                debug=f"{kek_uri} is {'disabled' if kek_uri in self._disabled else 'not in the keyring'}",
            )
        return self._keys[kek_uri]


def kek_name(key: bytes) -> str:
    """Return the URI of a local KEK: a keyed digest that identifies it and tells nothing about it."""
    return f"{SCHEME}://{hmac.new(key, b'llm-proxy/kek-name/1', hashlib.sha256).hexdigest()[:12]}"


def _aad(kek_uri: str, context: Sequence[str]) -> bytes:
    return length_prefixed(b"llm-proxy/data-key/1", kek_uri.encode(), *(part.encode() for part in context))


def parse_keyring(text: str, *, source: str) -> list[bytes]:
    """Read KEKs: 32 bytes in base64 each, separated by line ends or commas, the current one first.

    `#` starts a comment. `source` names the file or variable in the error.
    """
    keys = []
    lines = [line.split("#", 1)[0] for line in text.splitlines()]
    for number, word in enumerate((word for line in lines for word in line.replace(",", " ").split()), start=1):
        try:
            key = base64.b64decode(word, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise KeyringUnsafe(
                f"Key {number} of {source} is not 32 bytes in base64.",
                hint="Make one with `openssl rand -base64 32`.",
            )
        if len(set(key)) == 1:
            raise KeyringUnsafe(
                f"Key {number} of {source} is one byte repeated.", hint="Make one with `openssl rand -base64 32`."
            )
        keys.append(key)
    if not keys:
        raise KeyringUnsafe(f"{source} holds no key.", hint="Make one with `openssl rand -base64 32`.")
    return keys


def load_keyring_file(path: Path) -> LocalKeyring:
    """Read a keyring file; refused when anyone but its owner may read or write it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise KeyringUnsafe(
            f"The keyring file {path} does not exist.",
            hint="Restore it from its backup; without it stored provider keys cannot be read. For a new installation, "
            "create it: (umask 077; openssl rand -base64 32 > FILE).",
        ) from None
    except PermissionError:
        raise KeyringUnsafe(
            f"The keyring file {path} cannot be read.", hint="Make the user that runs the gateway its owner."
        ) from None
    with os.fdopen(descriptor, encoding="ascii", errors="replace") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise KeyringUnsafe(
                f"The keyring file {path} is open to others (mode {mode:04o}).",
                hint=f"chmod 600 {path}; if others may have read it, rotate the key-encryption key.",
            )
        return LocalKeyring(parse_keyring(file.read(), source=f"the keyring file {path}"))


def create_keyring_file(path: Path, *, random_bytes: RandomBytes = os.urandom) -> LocalKeyring:
    """Create a keyring file with one new key, mode 0600, never over an existing one (`FileExistsError`).

    For first starts in development: a production keyring is made, and backed up, by its operator.
    """
    key = random_bytes(KEY_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write("# Key-encryption keys, the current one first. Losing them loses every stored provider key.\n")
        file.write(base64.b64encode(key).decode() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return LocalKeyring([key])
