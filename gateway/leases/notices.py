"""Notices by which a process has others read what it has just told: which rows, of which tenant, by whom. Pure.

They go over Postgres' `NOTIFY`, which everybody hears who listens on the database, so they hold ids alone. One that is
lost or not understood costs no more than time: the row is read with the next exchange.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final
from uuid import UUID

import msgspec

from gateway.leases.store import Key

CHANNEL: Final = "llm_proxy_leases"
"""A channel of its own: these come often, and nobody but the leases is to be woken by them."""
_MAX_BYTES: Final = 7_900
"""Postgres takes less than 8,000."""


class Notice(msgspec.Struct):
    """Rows of one tenant in which something was told; `by` is the sender's `tag`."""

    tenant_id: UUID
    rows: list[str]
    by: str


_ENCODER, _DECODER = msgspec.json.Encoder(), msgspec.json.Decoder(Notice)


def tag(lessee: str) -> str:
    """Give what stands for a process in its notices, by which it knows its own; not its name, which tells of hosts."""
    return blake2b(lessee.encode(), digest_size=8).hexdigest()


def encode(keys: Iterable[Key], by: str) -> list[str]:
    """Give notices' payloads for these rows: one a tenant, or more where they would be too long."""
    tenants: dict[UUID, list[str]] = {}
    for tenant_id, quota_id in keys:
        tenants.setdefault(tenant_id, []).append(quota_id)
    return [payload for tenant_id, rows in tenants.items() for payload in _payloads(Notice(tenant_id, rows, by))]


def _payloads(notice: Notice) -> Iterable[str]:
    payload = _ENCODER.encode(notice)
    if len(payload) <= _MAX_BYTES:
        yield payload.decode()
    elif (half := len(notice.rows) // 2) > 0:
        for rows in (notice.rows[:half], notice.rows[half:]):
            yield from _payloads(Notice(notice.tenant_id, rows, notice.by))


def parse(payload: str) -> Notice | None:
    """Read a notice; None: it is not understood."""
    try:
        return _DECODER.decode(payload)
    except msgspec.MsgspecError:
        return None
