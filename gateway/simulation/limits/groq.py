"""Groq: OpenAI's header names with a trap, `-requests` counts the day."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from gateway.balancing.outcome import TokenUsage
from gateway.simulation.limits.meters import DAY_S, Meter, RefillBucket
from gateway.simulation.limits.model import (
    REQUESTS,
    REQUESTS_DAY,
    TOKENS,
    TOKENS_DAY,
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
from gateway.simulation.limits.openai import duration

_UNIT = {
    REQUESTS: "requests per minute (RPM)",
    TOKENS: "tokens per minute (TPM)",
    REQUESTS_DAY: "requests per day (RPD)",
    TOKENS_DAY: "tokens per day (TPD)",
}


class GroqLimits(LimitModel):
    """RPM, RPD, TPM, TPD per organisation; cached tokens are free; reserved with `max_tokens`, settled at the end.

    `x-ratelimit-*-requests` tells RPD and `-tokens` TPM; `retry-after` comes with a 429 only.
    Source: console.groq.com/docs/rate-limits.
    """

    style: ClassVar[str] = "groq"

    def meters(self) -> dict[str, Meter]:
        limits = self.limits
        return present(
            (
                (REQUESTS, RefillBucket(limits.rpm) if limits.rpm else None),
                (TOKENS, RefillBucket(limits.tpm) if limits.tpm else None),
                (REQUESTS_DAY, RefillBucket(limits.rpd, DAY_S) if limits.rpd else None),
                (TOKENS_DAY, RefillBucket(limits.tpd, DAY_S) if limits.tpd else None),
            )
        )

    def charges(self, cost: Cost) -> dict[str, float]:
        tokens = cost.input_tokens - cost.cached_input_tokens + (cost.max_output_tokens or 0)
        return {REQUESTS: 1, TOKENS: tokens, REQUESTS_DAY: 1, TOKENS_DAY: tokens}

    def settled(self, ticket: Ticket, usage: TokenUsage) -> Mapping[str, float]:  # noqa: ARG002 - usage alone decides
        tokens = usage.input - usage.cached_input + usage.output
        return {TOKENS: tokens, TOKENS_DAY: tokens}

    def headers(self, meters: Mapping[str, Meter], now: float) -> Headers:
        told: list[tuple[str, str]] = []
        for shown, dimension in (("requests", REQUESTS_DAY), ("tokens", TOKENS)):
            meter = meters.get(dimension)
            if meter is not None:
                told.append((f"x-ratelimit-limit-{shown}", str(int(meter.capacity))))
                told.append((f"x-ratelimit-remaining-{shown}", left(meter, now)))
                told.append((f"x-ratelimit-reset-{shown}", duration(meter.full_in(now))))
        return tuple(told)

    def rejection(self, short: Shortage) -> Rejected:
        wait, told = short.wait_s, short.told
        message = (
            f"Rate limit reached for model `{short.cost.model}` in organization `{self.organisation}` on "
            f"{_UNIT.get(short.dimension, 'concurrent requests')}: Limit {short.limit}, Used {short.used}, "
            f"Requested {int(short.amount)}."
        )
        if wait is not None:
            message += f" Please try again in {duration(wait)}."
            told += (("retry-after", whole_seconds(wait)),)
        kind = "tokens" if short.dimension in (TOKENS, TOKENS_DAY) else "requests"
        body = {"error": {"message": message, "type": kind, "code": "rate_limit_exceeded"}}
        return Rejected(429, told, body, short.dimension, wait)
