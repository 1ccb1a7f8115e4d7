"""A provider that says nothing: a sliding minute, no headers, usage posted when it is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from gateway.balancing.outcome import TokenUsage
from gateway.simulation.limits.meters import Meter, SlidingWindow
from gateway.simulation.limits.model import (
    REQUESTS,
    TOKENS,
    Cost,
    Headers,
    LimitModel,
    Rejected,
    Shortage,
    Ticket,
    present,
)


class OpaqueLimits(LimitModel):
    """RPM and TPM over the last 60 seconds; the prompt counts at admission, the output when it ends."""

    style: ClassVar[str] = "opaque"

    def meters(self) -> dict[str, Meter]:
        limits = self.limits
        return present(
            (
                (REQUESTS, SlidingWindow(limits.rpm) if limits.rpm else None),
                (TOKENS, SlidingWindow(limits.tpm) if limits.tpm else None),
            )
        )

    def charges(self, cost: Cost) -> dict[str, float]:
        return {REQUESTS: 1, TOKENS: cost.input_tokens}

    def settled(self, ticket: Ticket, usage: TokenUsage) -> Mapping[str, float]:  # noqa: ARG002 - usage alone decides
        return {TOKENS: usage.input + usage.output}

    def headers(self, meters: Mapping[str, Meter], now: float) -> Headers:  # noqa: ARG002 - that is the point
        return ()

    def rejection(self, short: Shortage, told: Headers = ()) -> Rejected:
        """Say that it is too much, and nothing else; `told` are headers of a provider that says a little more."""
        body = {"error": {"message": "Too many requests", "type": "rate_limit_error", "param": None, "code": None}}
        return Rejected(429, told, body, short.dimension, short.wait_s)
