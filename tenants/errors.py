"""What can go wrong with custody, in words that say whether the secret, the key or the KMS is at fault."""

from __future__ import annotations

from auth.errors import Conflict, Fault, Unavailable


class SealBroken(ValueError):
    """An envelope or a wrapped data key does not open: tampered with, moved to another row, or sealed by another key.

    Deliberately no `Fault`: no caller can mend it. Whoever opens envelopes decides what is left without it.
    """


class KekUnavailable(Unavailable):
    """The key-encryption key's provider does not answer; what is cached goes on working for a bounded time."""

    code = "kek_unavailable"


class KekDisabled(Unavailable):
    """The key-encryption key was disabled or destroyed: everything that it wraps is cut off at once."""

    code = "kek_disabled"


class KeyringUnsafe(Fault):
    """A keyring file or value cannot be used as it is; the hint says what to change."""

    code = "keyring_unsafe"


class TenantShredded(Conflict):
    """The tenant was deleted and its share destroyed; its rows came back with a backup: nothing is sealed for it."""

    code = "tenant_shredded"
