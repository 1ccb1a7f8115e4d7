"""One usage row: what a request asked for, who served it, what it used. The shape of table `usage_event`."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec


class UsageEvent(msgspec.Struct, frozen=True, gc=False):
    """Written once for each request that passed authentication, also when it failed or the caller left.

    `id` is a UUID, its hexadecimal digits alone; `at` the arrival (UTC); `status` what the caller was sent (499: the
    caller left before an answer began); `outcome` an `OutcomeKind` or the code of the refusal. Times in milliseconds;
    `cost_usd_nanos` in billionths of a US dollar. `model` is the name the caller asked for, `served_model` the one that
    the provider named. `usage_reported` is False where tokens were estimated. `regions` are those of every attempt in
    order, with commas between ("-" for a key that names none), None where `region` says it all; `residency` the only
    regions that were allowed, None = any.
    """

    id: str
    tenant_id: UUID
    at: datetime
    request_id: str
    client_id: str
    token_id: str
    pool_id: UUID | None
    key_id: UUID | None
    key_version: int | None
    provider: str | None
    region: str | None
    operation: str
    model: str
    served_model: str | None
    status: int
    outcome: str
    attempts: int
    streamed: bool
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    usage_reported: bool
    cost_usd_nanos: int | None
    first_byte_ms: float | None
    total_ms: float
    regions: str | None = None
    residency: str | None = None
