"""How a key is recognised by people and by comparisons, without telling anything that helps to guess it."""

from __future__ import annotations

import hashlib
import hmac
from uuid import UUID

from auth.secret import Secret

PREFIX_CHARACTERS = 7
FINGERPRINT_HEX = 16


def prefix_of(secret: Secret) -> str:
    """Return the first characters of a key: at most 7, never more than a third of it."""
    value = secret.reveal()
    return value[: min(PREFIX_CHARACTERS, len(value) // 3)]


def fingerprint_of(tenant_id: UUID, secret: Secret) -> str:
    """Return 16 hex digits that are equal for equal keys of one tenant, and differ between tenants.

    HMAC-SHA-256 keyed by the tenant: it finds a key that is stored twice, and does not show that two tenants share one.
    """
    mac = hmac.new(b"llm-proxy/fingerprint/1" + tenant_id.bytes, secret.reveal().encode(), hashlib.sha256)
    return mac.hexdigest()[:FINGERPRINT_HEX]
