"""OpenAI: continuous refill per organisation and model, charged by the larger of `max_tokens` and an estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from gateway.simulation.limits.meters import DAY_S, Meter, RefillBucket
from gateway.simulation.limits.model import (
    CONCURRENCY,
    REQUESTS,
    REQUESTS_DAY,
    TOKENS,
    TOKENS_DAY,
    Cost,
    Headers,
    LimitModel,
    Rejected,
    Shortage,
    left,
    present,
    whole_seconds,
)

_UNIT = {
    REQUESTS: "requests per min (RPM)",
    TOKENS: "tokens per min (TPM)",
    REQUESTS_DAY: "requests per day (RPD)",
    TOKENS_DAY: "tokens per day (TPD)",
    CONCURRENCY: "concurrent requests",
}


class OpenAILimits(LimitModel):
    """RPM, TPM, RPD, TPD with continuous refill; failed requests count; nothing is settled afterwards.

    Source: the rate-limits guide ("Error mitigation": `max_tokens` counts towards the limit, unsuccessful requests
    contribute to the per-minute limit; "Rate limits in headers": `x-ratelimit-*`, resets as durations).
    """

    style: ClassVar[str] = "openai"
    charged_when_refused: ClassVar[tuple[str, ...]] = (REQUESTS, REQUESTS_DAY)

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
        tokens = max(cost.max_output_tokens or 0, cost.input_tokens)
        return {REQUESTS: 1, TOKENS: tokens, REQUESTS_DAY: 1, TOKENS_DAY: tokens}

    def headers(self, meters: Mapping[str, Meter], now: float) -> Headers:
        told: list[tuple[str, str]] = []
        for dimension in (REQUESTS, TOKENS):
            meter = meters.get(dimension)
            if meter is not None:
                told.append((f"x-ratelimit-limit-{dimension}", str(int(meter.capacity))))
                told.append((f"x-ratelimit-remaining-{dimension}", left(meter, now)))
                told.append((f"x-ratelimit-reset-{dimension}", duration(meter.full_in(now))))
        return tuple(told)

    def rejection(self, short: Shortage) -> Rejected:
        wait, told = short.wait_s, short.told
        where = f"for {short.cost.model} in organization {self.organisation} on {_UNIT[short.dimension]}"
        if wait is None:
            message = (
                f"Request too large {where}: Limit {short.limit}, Requested {int(short.amount)}. The input or output "
                "tokens must be reduced in order to run successfully."
            )
        else:
            message = (
                f"Rate limit reached {where}: Limit {short.limit}, Used {short.used}, Requested {int(short.amount)}. "
                f"Please try again in {duration(wait)}."
            )
        kind = "tokens" if short.dimension in (TOKENS, TOKENS_DAY) else "requests"
        body = {"error": {"message": message, "type": kind, "param": None, "code": "rate_limit_exceeded"}}
        if wait is not None:
            told += (("retry-after-ms", str(max(1, int(wait * 1000)))), ("retry-after", whole_seconds(wait)))
        return Rejected(429, told, body, short.dimension, wait)


def duration(seconds: float) -> str:
    """Write seconds as Go's `time.Duration` does, and OpenAI's and Groq's headers do: "120ms", "1s", "6m0s"."""
    if seconds < 1:
        return f"{int(seconds * 1000)}ms" if seconds > 0 else "0s"
    minutes, rest = divmod(round(seconds, 3), 60)
    tail = f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
    if not minutes:
        return tail
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}h{minutes}m{tail}" if hours else f"{minutes}m{tail}"
