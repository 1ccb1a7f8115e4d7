"""Azure OpenAI: tokens in whole minutes, requests in sub-windows of 1 or 10 seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from gateway.balancing.quota import Limits
from gateway.simulation.limits.meters import FixedWindow, Meter
from gateway.simulation.limits.model import (
    REQUESTS,
    TOKENS,
    Cost,
    Headers,
    LimitModel,
    Rejected,
    Shortage,
    left,
    present,
)

_DEFAULT_OUTPUT_TOKENS = 1_000


class AzureLimits(LimitModel):
    """RPM is enforced in `sub_window_s` slices, TPM in a minute with a phase of its own; a deployment is the quota.

    Charged at admission: prompt estimate + `max_tokens` (a default when unset); not settled. `remaining-requests` tells
    the sub-window's rest (19 at 120 RPM after one request). A 429 carries `retry-after` and `retry-after-ms`.
    Source: Azure OpenAI quota how-to ("RPM … evaluated over 1 or 10 seconds"), Dev Proxy's LLM rate-limit concepts.
    """

    style: ClassVar[str] = "azure"

    def __init__(
        self,
        limits: Limits,
        *,
        organisation: str = "org-simulated",
        models_share: bool = False,
        sub_window_s: float = 10.0,
        phase_s: float = 0.0,
        default_output_tokens: int = _DEFAULT_OUTPUT_TOKENS,
    ) -> None:
        super().__init__(limits, organisation=organisation, models_share=models_share)
        self._sub_window_s = sub_window_s
        self._phase_s = phase_s
        self._default_output_tokens = default_output_tokens

    def meters(self) -> dict[str, Meter]:
        limits = self.limits
        share = self._sub_window_s / 60.0
        return present(
            (
                (REQUESTS, FixedWindow(max(1, int(limits.rpm * share)), self._sub_window_s) if limits.rpm else None),
                (TOKENS, FixedWindow(limits.tpm, phase_s=self._phase_s) if limits.tpm else None),
            )
        )

    def charges(self, cost: Cost) -> dict[str, float]:
        output = self._default_output_tokens if cost.max_output_tokens is None else cost.max_output_tokens
        return {REQUESTS: 1, TOKENS: cost.input_tokens + output}

    def headers(self, meters: Mapping[str, Meter], now: float) -> Headers:
        return tuple((f"x-ratelimit-remaining-{dimension}", left(meter, now)) for dimension, meter in meters.items())

    def rejection(self, short: Shortage) -> Rejected:
        wait, told = short.wait_s, short.told
        hint = ""
        if wait is not None:
            # Rounded up alike, so that neither the sentence nor a header sends the caller back too early.
            milliseconds = max(1, -int(-wait * 1000 // 1))
            seconds = max(1, -(-milliseconds // 1000))
            told += (("retry-after", str(seconds)), ("retry-after-ms", str(milliseconds)))
            hint = f" Please retry after {seconds} second{'s' if seconds != 1 else ''}."
        kind = "token rate limit" if short.dimension == TOKENS else "call rate limit"
        message = (
            f"Requests to the ChatCompletions_Create Operation under Azure OpenAI API have exceeded {kind} of your "
            f"current pricing tier for {short.cost.model}.{hint}"
        )
        return Rejected(429, told, {"error": {"code": "429", "message": message}}, short.dimension, wait)
