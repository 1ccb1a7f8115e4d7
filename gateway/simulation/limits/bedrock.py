"""Amazon Bedrock: reserves the most a request could use, settles when it ends, and tells nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from gateway.balancing.outcome import TokenUsage
from gateway.balancing.quota import Limits
from gateway.simulation.limits.meters import DAY_S, FixedWindow, Meter
from gateway.simulation.limits.model import (
    REQUESTS,
    TOKENS,
    TOKENS_DAY,
    Cost,
    Headers,
    LimitModel,
    Rejected,
    Shortage,
    Ticket,
    present,
)

_MODEL_MAXIMUM_TOKENS = 64_000


class BedrockLimits(LimitModel):
    """RPM, TPM and tokens a day; input + `max_tokens` is held until the end (unset: the model's maximum, 64K).

    Source: Bedrock user guide, "How tokens are counted": the initial reservation is input + `max_tokens`, adjusted at
    the end of the request.
    """

    style: ClassVar[str] = "bedrock"

    def __init__(
        self,
        limits: Limits,
        *,
        organisation: str = "org-simulated",
        models_share: bool = False,
        model_maximum_tokens: int = _MODEL_MAXIMUM_TOKENS,
    ) -> None:
        super().__init__(limits, organisation=organisation, models_share=models_share)
        self._model_maximum_tokens = model_maximum_tokens

    def meters(self) -> dict[str, Meter]:
        limits = self.limits
        return present(
            (
                (REQUESTS, FixedWindow(limits.rpm) if limits.rpm else None),
                (TOKENS, FixedWindow(limits.tpm) if limits.tpm else None),
                (TOKENS_DAY, FixedWindow(limits.tpd, DAY_S) if limits.tpd else None),
            )
        )

    def charges(self, cost: Cost) -> dict[str, float]:
        output = self._model_maximum_tokens if cost.max_output_tokens is None else cost.max_output_tokens
        return {REQUESTS: 1, TOKENS: cost.input_tokens + output, TOKENS_DAY: cost.input_tokens + output}

    def settled(self, ticket: Ticket, usage: TokenUsage) -> Mapping[str, float]:  # noqa: ARG002 - usage alone decides
        tokens = usage.input + usage.output
        return {TOKENS: tokens, TOKENS_DAY: tokens}

    def headers(self, meters: Mapping[str, Meter], now: float) -> Headers:  # noqa: ARG002 - Bedrock tells nothing
        return ()

    def rejection(self, short: Shortage) -> Rejected:
        said = {TOKENS: "Too many tokens", TOKENS_DAY: "Too many tokens per day"}.get(
            short.dimension, "Too many requests"
        )
        body = {"message": f"{said}, please wait before trying again."}
        told = (("x-amzn-errortype", "ThrottlingException"),)
        return Rejected(429, told, body, short.dimension, short.wait_s)
