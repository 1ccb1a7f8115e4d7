"""Client secrets: 256 random bits in a recognisable, checkable form, stored as a peppered MAC.

Form: `lps_` + 43 base62 digits of the 256 bits + 6 base62 digits of a CRC32 over what stands before (as GitHub's tokens
do), so that scanners find leaked ones and a mistyped one is refused without a database. Only `[A-Za-z0-9_]` occurs: no
client library trips over form-encoding in HTTP Basic (RFC 6749 section 2.3.1).

Stored: HMAC-SHA-256 under a versioned pepper that lives outside Postgres. At 256 bits of entropy a slow hash adds no
strength and would hand out a CPU denial of service.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from auth.secret import Secret

PREFIX = "lps_"
MAX_LIVE_SECRETS = 2
"""How many secrets of a client live at once: the old and the new one while its owner rotates."""

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ENTROPY_BYTES = 32
_BODY = 43
_CHECK = 6
_DOMAIN = b"llm-proxy client secret v1\x00"
_NOBODY = UUID(int=0)


def base62(number: int, width: int) -> str:
    """Write a non-negative number in exactly `width` base62 digits, zero-padded; it must fit."""
    digits = ""
    for _ in range(width):
        number, rest = divmod(number, 62)
        digits = _DIGITS[rest] + digits
    if number:
        raise ValueError("the number does not fit into the width")
    return digits


def new_secret(entropy: bytes | None = None) -> Secret:
    """Mint a secret; `entropy` (32 bytes) is for tests, production leaves it to the system's generator."""
    drawn = secrets.token_bytes(_ENTROPY_BYTES) if entropy is None else entropy
    head = PREFIX + base62(int.from_bytes(drawn), _BODY)
    return Secret(head + base62(zlib.crc32(head.encode()), _CHECK))


def well_formed(value: str) -> bool:
    """Tell whether `value` has the form and checksum of a client secret: a mistyped one costs no query."""
    if len(value) != len(PREFIX) + _BODY + _CHECK or not value.isascii() or not value.startswith(PREFIX):
        return False
    head, check = value[:-_CHECK], value[-_CHECK:]
    return all(char in _DIGITS for char in head[len(PREFIX) :]) and base62(zlib.crc32(head.encode()), _CHECK) == check


def shown_prefix(secret: Secret) -> str:
    """Return the first characters, by which an owner recognises a secret in a list (40 of the 256 bits at most)."""
    return secret.reveal()[: len(PREFIX) + 6]


class Peppers:
    """The MAC keys by version; new secrets use the highest version, old ones are re-MACed when next used.

    Every pepper has at least 32 bytes. They come from the environment or the keyring, never from Postgres.
    """

    def __init__(self, by_version: Mapping[int, bytes]) -> None:
        if not by_version:
            raise ValueError("at least one pepper is needed")
        for version, key in by_version.items():
            if version < 1 or len(key) < 32:
                raise ValueError(f"pepper {version}: versions start at 1 and keys have at least 32 bytes")
        self._by_version = dict(by_version)
        self.current = max(by_version)

    def __repr__(self) -> str:
        return f"Peppers(versions={sorted(self._by_version)})"

    def mac(self, client: UUID, secret: str, version: int | None = None) -> bytes:
        """Return the 32-byte MAC of `secret`, bound to its client's row so that a swapped row does not verify.

        A version that is no longer configured gives a MAC that matches nothing.
        """
        key = self._by_version.get(self.current if version is None else version)
        message = _DOMAIN + client.bytes + secret.encode()
        if key is None:
            hmac.digest(self._by_version[self.current], message, hashlib.sha256)
            return b""
        return hmac.digest(key, message, hashlib.sha256)

    def derive(self, purpose: bytes) -> bytes:
        """Return a 32-byte key for another purpose, the same in every process with the same current pepper."""
        return hmac.digest(self._by_version[self.current], b"llm-proxy derived key v1\x00" + purpose, hashlib.sha256)


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """One stored secret as the check needs it; times are aware datetimes, None: never."""

    id: UUID
    mac: bytes
    pepper_version: int
    expires_at: datetime | None
    last_used_at: datetime | None


def match(
    peppers: Peppers, client: UUID | None, stored: Sequence[StoredSecret], presented: str, *, now: datetime
) -> StoredSecret | None:
    """Return the live stored secret that `presented` is, or None.

    An unknown client (None) and one with fewer secrets cost the same two MACs and comparisons as a known one; expiry is
    looked at after the comparison. The number of MACs does not depend on what the secret is.
    """
    found: StoredSecret | None = None
    owner = _NOBODY if client is None else client
    for place in range(MAX_LIVE_SECRETS):
        each = stored[place] if place < len(stored) else None
        mac = peppers.mac(owner, presented, each.pepper_version if each else None)
        same = hmac.compare_digest(mac or b"\x00" * 32, each.mac if each else b"\xff" * 32)
        if same and mac and each is not None and (each.expires_at is None or now < each.expires_at):
            found = each
    return found if client is not None else None
