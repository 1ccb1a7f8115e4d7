"""Anthropic: token buckets for requests, uncached input tokens and output tokens."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import ClassVar

from gateway.balancing.outcome import TokenUsage
from gateway.simulation.limits.meters import Meter, RefillBucket
from gateway.simulation.limits.model import (
    INPUT,
    OUTPUT,
    REQUESTS,
    TOKENS,
    Cost,
    Headers,
    LimitModel,
    Rejected,
    Shortage,
    Ticket,
    left,
    present,
    whole_seconds,
)

_DEFAULT_OUTPUT_TOKENS = 4_096
_UNIT = {REQUESTS: "requests per minute", INPUT: "input tokens per minute", OUTPUT: "output tokens per minute"}


class AnthropicLimits(LimitModel):
    """RPM, ITPM (cache reads excluded) and OTPM (estimated from `max_tokens`, corrected when the answer ends).

    `tpm`, when set, stands for both token dimensions that are not set on their own. Token headers are rounded to
    thousands, as documented; the meters are not. Source: docs.anthropic.com/en/api/rate-limits ("token bucket
    algorithm", "Response headers").
    """

    style: ClassVar[str] = "anthropic"

    def meters(self) -> dict[str, Meter]:
        limits = self.limits
        itpm, otpm = limits.itpm or limits.tpm, limits.otpm or limits.tpm
        return present(
            (
                (REQUESTS, RefillBucket(limits.rpm) if limits.rpm else None),
                (INPUT, RefillBucket(itpm) if itpm else None),
                (OUTPUT, RefillBucket(otpm) if otpm else None),
            )
        )

    def charges(self, cost: Cost) -> dict[str, float]:
        output = _DEFAULT_OUTPUT_TOKENS if cost.max_output_tokens is None else cost.max_output_tokens
        return {REQUESTS: 1, INPUT: cost.input_tokens - cost.cached_input_tokens, OUTPUT: output}

    def settled(self, ticket: Ticket, usage: TokenUsage) -> Mapping[str, float]:  # noqa: ARG002 - usage alone decides
        return {INPUT: usage.input - usage.cached_input, OUTPUT: usage.output}

    def headers(self, meters: Mapping[str, Meter], now: float) -> Headers:
        told: list[tuple[str, str]] = []
        for dimension, meter in meters.items():
            shown = self._shown(dimension, meter, now)
            told += _triple(dimension, int(meter.capacity), shown, now + meter.full_in(now))
        tokens = [meters[name] for name in (INPUT, OUTPUT) if name in meters]
        if tokens:
            limit = int(sum(meter.capacity for meter in tokens))
            remaining = sum(self._shown(TOKENS, meter, now) for meter in tokens)
            told += _triple(TOKENS, limit, remaining, now + max(meter.full_in(now) for meter in tokens))
        return tuple(told)

    @staticmethod
    def _shown(dimension: str, meter: Meter, now: float) -> int:
        exact = int(left(meter, now))
        return exact if dimension == REQUESTS else min(int(meter.capacity), round(exact, -3))

    def rejection(self, short: Shortage) -> Rejected:
        wait, told = short.wait_s, short.told
        if wait is not None:
            told += (("retry-after", whole_seconds(wait)),)
        if short.dimension in _UNIT:
            counted = f"{short.limit:,} {_UNIT[short.dimension]}"
            message = (
                f"This request would exceed your organization's rate limit of {counted} (org: {self.organisation}, "
                f"model: {short.cost.model}). For details, refer to: https://docs.anthropic.com/en/api/rate-limits. "
                "You can see the response headers for current usage. Please reduce the prompt length or the maximum "
                "tokens requested, or try again later."
            )
        else:
            message = "Number of concurrent connections has exceeded your rate limit. Please try again later."
        body = {"type": "error", "error": {"type": "rate_limit_error", "message": message}}
        return Rejected(429, told, body, short.dimension, wait)


def _triple(dimension: str, limit: int, remaining: int, full_at: float) -> list[tuple[str, str]]:
    name = f"anthropic-ratelimit-{dimension}"
    moment = datetime.fromtimestamp(int(full_at), UTC).isoformat().replace("+00:00", "Z")
    return [(f"{name}-limit", str(limit)), (f"{name}-remaining", str(remaining)), (f"{name}-reset", moment)]
