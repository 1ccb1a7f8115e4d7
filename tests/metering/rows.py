"""Usage rows for tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from msgspec.structs import replace
from uuid_utils.compat import uuid7

from gateway.metering.event import UsageEvent

TENANT = UUID("00000000-0000-7000-8000-00000000000a")

_ROW = UsageEvent(
    id=UUID(int=1).hex,
    tenant_id=TENANT,
    at=datetime(2025, 11, 3, 12, 0, tzinfo=UTC),
    request_id="req_1",
    client_id="app",
    token_id="jti",
    pool_id=UUID(int=2),
    key_id=UUID(int=3),
    key_version=1,
    provider="openai",
    region=None,
    operation="chat/completions",
    model="gpt-4o",
    served_model="gpt-4o-2024-08-06",
    status=200,
    outcome="ok",
    attempts=1,
    streamed=False,
    input_tokens=10,
    output_tokens=5,
    cached_input_tokens=0,
    usage_reported=True,
    cost_usd_nanos=2**40,
    first_byte_ms=12.5,
    total_ms=20.25,
)


def usage_row(**changes: Any) -> UsageEvent:
    """Return a plausible row with an id of its own."""
    return replace(_ROW, **{"id": uuid7().hex, **changes})
