"""The limits that are known of one quota for one model family: configured by an operator, or named by the provider."""

from __future__ import annotations

from gateway.balancing.charging import Dimension
from gateway.balancing.hints import Hint, WindowHint
from gateway.balancing.predictor import by_dimension
from gateway.balancing.quota import Limits


def named_by(hint: Hint) -> list[tuple[Dimension, WindowHint]]:
    """Give what a hint says, by dimension."""
    named: list[tuple[Dimension, WindowHint]] = []
    if hint.requests is not None:
        named.append((Dimension.RPM, hint.requests))
    if hint.tokens is not None:
        named.append((Dimension.TPM, hint.tokens))
    if hint.input_tokens is not None:
        named.append((Dimension.ITPM, hint.input_tokens))
    if hint.output_tokens is not None:
        named.append((Dimension.OTPM, hint.output_tokens))
    if hint.daily_requests is not None:
        named.append((Dimension.RPD, hint.daily_requests))
    if hint.daily_tokens is not None:
        named.append((Dimension.TPD, hint.daily_tokens))
    return named


class KnownLimits:
    """`configured` and, as the provider last named them, `told`."""

    __slots__ = ("configured", "told")

    def __init__(self) -> None:
        self.configured: dict[Dimension, int] = {}
        self.told: dict[Dimension, int] = {}

    def configure(self, limits: Limits) -> None:
        """Take over changed limits."""
        self.configured = {
            dimension: value
            for dimension in Dimension
            if (value := getattr(limits, dimension.name.lower())) is not None
        }

    def effective(self, dimension: Dimension) -> int | None:
        """Give the smaller of the two: a deliberate cap stays a cap, and a wrong one is found out; None: no limit."""
        configured, told = self.configured.get(dimension), self.told.get(dimension)
        if configured is None or told is None:
            return told if configured is None else configured
        return min(configured, told)

    def source(self, dimension: Dimension, limit: float | None) -> str:
        """Say whose word `limit` is, the one in force: configured, provider, or learned where it is neither's."""
        if limit == self.configured.get(dimension):
            return "configured"
        return "provider" if limit == self.told.get(dimension) else "learned"

    def misconfigured(self, *, input_alone: bool) -> dict[str, tuple[int, int]]:
        """Give (configured, told) where the configured limit is above what the provider grants.

        `input_alone`: tokens a minute are input tokens, by whichever of the two names they go.
        """
        told = dict(self.told)
        if input_alone:
            for one, other in ((Dimension.TPM, Dimension.ITPM), (Dimension.ITPM, Dimension.TPM)):
                if other in self.told:
                    told.setdefault(one, self.told[other])
        return {
            dimension.name.lower(): (configured, told[dimension])
            for dimension, configured in self.configured.items()
            if dimension in told and configured > told[dimension]
        }

    def export(self) -> dict[str, int]:
        """Give what the provider named, as plain JSON values."""
        return {dimension.name.lower(): limit for dimension, limit in self.told.items()}

    def restore(self, saved: object) -> None:
        """Take over what `export` gave, save what was named anew; what is not understood is left out."""
        for dimension, limit in by_dimension(saved):
            if limit >= 1.0:
                self.told.setdefault(dimension, int(limit))
