"""Which KEKs wrap data keys, how many each, and what their providers say of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Literal

from auth.storage import Connections
from tenants.errors import KekDisabled, KekUnavailable
from tenants.keyring import KeyWrapper

STATUS_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class KekUse:
    """How many data keys a KEK wraps, as the first or as the spare."""

    kek_uri: str
    role: Literal["wraps", "spare"]
    data_keys: int


async def kek_uses(connections: Connections) -> list[KekUse]:
    """Return which KEKs are in use; one may be retired when neither role has a data key left."""
    async with connections.platform() as connection:
        rows = await connection.fetch(
            "select kek_uri, 'wraps' as role, count(*) as n from data_key group by kek_uri union all "
            "select spare_uri, 'spare', count(*) from data_key where spare_uri is not null group by spare_uri "
            "order by role desc, kek_uri"
        )
    return [KekUse(row["kek_uri"], row["role"], row["n"]) for row in rows]


async def status_of(use: KekUse, wrapper: KeyWrapper, spare: KeyWrapper | None) -> str:
    """Return what a KEK's provider says of it: "missing" when nothing configured opens it, "unavailable" when away."""
    provider = spare if use.role == "spare" else wrapper
    if provider is None or (use.role == "wraps" and not provider.opens(use.kek_uri)):
        return "missing"
    try:
        async with asyncio.timeout(STATUS_TIMEOUT_S):
            return await provider.status(use.kek_uri)
    except (KekUnavailable, TimeoutError):
        return "unavailable"
    except KekDisabled:
        return "disabled"
