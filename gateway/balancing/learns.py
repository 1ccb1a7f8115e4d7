"""Which strategies want limiters to be learned."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from gateway.balancing.predictor import Learning


@runtime_checkable
class Learns(Protocol):
    """A strategy that wants the limiters of its pool to be learned, beyond what is configured and told."""

    @property
    def learning(self) -> Learning | None:
        """How; None: not."""
