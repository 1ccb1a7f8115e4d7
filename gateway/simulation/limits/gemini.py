"""Gemini: whole minutes on the clock, days in Pacific time, and nothing told before the refusal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from gateway.balancing.outcome import TokenUsage
from gateway.simulation.limits.meters import FixedWindow, Meter, PacificDay
from gateway.simulation.limits.model import (
    INPUT,
    REQUESTS,
    REQUESTS_DAY,
    Cost,
    Headers,
    LimitModel,
    Rejected,
    Shortage,
    Ticket,
    present,
)

_METRIC = "generativelanguage.googleapis.com/generate_content_paid_tier"
_LINK = "https://ai.google.dev/gemini-api/docs/rate-limits"
_QUOTA = {
    REQUESTS: ("requests", "GenerateRequestsPerMinutePerProjectPerModel"),
    INPUT: ("input_token_count", "GenerateContentPaidTierInputTokensPerModelPerMinute"),
    REQUESTS_DAY: ("requests", "GenerateRequestsPerDayPerProjectPerModel"),
}


class GeminiLimits(LimitModel):
    """RPM, input TPM and RPD (reset at midnight Pacific) per project and model; no headers, `RetryInfo` in the body.

    Sources: ai.google.dev/gemini-api/docs/rate-limits (dimensions, midnight Pacific); google.rpc.RetryInfo and
    QuotaFailure (error_details.proto) for the body.
    """

    style: ClassVar[str] = "gemini"

    def meters(self) -> dict[str, Meter]:
        limits = self.limits
        itpm = limits.itpm or limits.tpm
        return present(
            (
                (REQUESTS, FixedWindow(limits.rpm) if limits.rpm else None),
                (INPUT, FixedWindow(itpm) if itpm else None),
                (REQUESTS_DAY, PacificDay(limits.rpd) if limits.rpd else None),
            )
        )

    def charges(self, cost: Cost) -> dict[str, float]:
        return {REQUESTS: 1, INPUT: cost.input_tokens, REQUESTS_DAY: 1}

    def settled(self, ticket: Ticket, usage: TokenUsage) -> Mapping[str, float]:  # noqa: ARG002 - usage alone decides
        return {INPUT: usage.input}

    def headers(self, meters: Mapping[str, Meter], now: float) -> Headers:  # noqa: ARG002 - none are documented
        return ()

    def rejection(self, short: Shortage) -> Rejected:
        wait, limit, model = short.wait_s, short.limit, short.cost.model
        metric, quota_id = _QUOTA.get(short.dimension, ("requests", "ConcurrentRequestsPerProject"))
        violation = {
            "quotaMetric": f"{_METRIC}_{metric}",
            "quotaId": quota_id,
            "quotaDimensions": {"location": "global", "model": model},
            "quotaValue": str(limit),
        }
        links = [{"description": "Learn more about Gemini API quotas", "url": _LINK}]
        details: list[dict[str, object]] = [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]},
            {"@type": "type.googleapis.com/google.rpc.Help", "links": links},
        ]
        message = (
            "You exceeded your current quota, please check your plan and billing details. For more information on "
            f"this error, head to: {_LINK}.\n* Quota exceeded for metric: {violation['quotaMetric']}, "
            f"limit: {limit}, model: {model}"
        )
        if wait is not None:
            # Also with a spent day the provider asks to come back within the minute, and then refuses again.
            told_s = (wait % 60.0 or 60.0) if short.dimension == REQUESTS_DAY else wait
            message += f"\nPlease retry in {told_s:.9f}s."
            details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{math.ceil(told_s)}s"})
        body = {"error": {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED", "details": details}}
        return Rejected(429, (), body, short.dimension, wait)
