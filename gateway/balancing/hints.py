"""What a provider says about its limits in response headers, as numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WindowHint:
    """One limited dimension: the limit, what remains of it, and seconds until it is full again (None = not said)."""

    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None


@dataclass(frozen=True, slots=True)
class Hint:
    """All that one response told; `quota_name` is the organisation or project it was charged to, when named.

    `requests` counts per minute unless `requests_per_day`; `retry_after_s` is a delay from the arrival.
    """

    retry_after_s: float | None = None
    requests: WindowHint | None = None
    requests_per_day: bool = False
    tokens: WindowHint | None = None
    input_tokens: WindowHint | None = None
    output_tokens: WindowHint | None = None
    quota_name: str | None = None
