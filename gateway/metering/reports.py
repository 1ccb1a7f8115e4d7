"""What became of one request, read back from its usage row: who served it, and in which regions it was tried."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from auth.storage import Connections

_REQUEST_ID = re.compile(r"(?:req_)?([0-9a-f]{32})")
_SLACK = timedelta(hours=1)
"""Rows are partitioned by day: the id tells the time to within the clocks' differences."""


class Residency(msgspec.Struct, frozen=True):
    """Where a request was allowed to go and where it went.

    `allowed` are the only regions that might serve it, null = any; `attempts` the region of every attempt in order,
    second and abandoned ones included, null where the key names none. `kept`: every attempt was in an allowed region.
    """

    allowed: list[str] | None
    attempts: list[str | None]
    kept: bool


class RequestReport(msgspec.Struct, frozen=True):
    """One request as it was metered: its caller, the key version that served it, and the proof of where it went.

    `pool` and `key` are the names of today, null once deleted. `cached_input_tokens` is the part of the input that was
    read from a cache; `usage_reported` is false where tokens, and so the cost, are estimated.
    """

    request_id: str
    at: datetime
    client_id: str
    token_id: str
    operation: str
    model: str
    served_model: str | None
    pool_id: UUID | None
    pool: str | None
    key_id: UUID | None
    key: str | None
    key_version: int | None
    provider: str | None
    region: str | None
    status: int
    outcome: str
    attempts: int
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    usage_reported: bool
    cost_usd_nanos: int | None
    first_byte_ms: float | None
    total_ms: float
    residency: Residency


_ELSEWHERE = {"pool": "p.name as pool", "key": "k.name as key"}
_COLUMNS = ", ".join(
    _ELSEWHERE.get(name, f"u.{name}") for name in RequestReport.__struct_fields__ if name != "residency"
)
_QUERY = (
    f"select {_COLUMNS}, u.regions, u.residency from usage_event u "  # noqa: S608 - names come from the struct
    "left join pool p on p.tenant_id = u.tenant_id and p.id = u.pool_id "
    "left join provider_key k on k.tenant_id = u.tenant_id and k.id = u.key_id "
    "where u.tenant_id = $1 and u.id = $2 and u.at between $3 and $4"
)


async def read_report(connections: Connections, tenant_id: UUID, request_id: str) -> RequestReport | None:
    """Return the report of a tenant's request, None if there is none (yet: rows are written within a second)."""
    found = _REQUEST_ID.fullmatch(request_id)
    if found is None:
        return None
    identifier = UUID(hex=found.group(1))
    try:
        at = datetime.fromtimestamp((identifier.int >> 80) / 1000.0, UTC)
        window = at - _SLACK, at + _SLACK
    except (OverflowError, ValueError, OSError):
        return None
    async with connections.tenant(tenant_id) as connection:
        row = await connection.fetchrow(_QUERY, tenant_id, identifier, *window)
    if row is None:
        return None
    told = dict(row)
    regions, allowed = told.pop("regions"), told.pop("residency")
    return RequestReport(**told, residency=residency_of(told["attempts"], told["region"], regions, allowed))


def residency_of(attempts: int, region: str | None, regions: str | None, allowed: str | None) -> Residency:
    """Read the two columns of a usage row; see `UsageEvent`."""
    if regions is not None:
        gone = [None if each == "-" else each for each in regions.split(",")]
    else:
        gone = [region] if attempts else []
    only = None if allowed is None else allowed.split(",")
    return Residency(only, gone, only is None or all(each in only for each in gone))
