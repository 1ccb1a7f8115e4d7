"""What processes tell each other of tokens' rates, so that `rpm` and `tpm` hold over all of them. Pure.

Each process tells a few times a second what it admitted, and counts what the others told in its own windows. Between
two exchanges (an epoch) it does not know what they admit; so it admits

    its first request, if it fits at all, and further ones up to   room / (4 * processes)

where the room is what its window has left. Why a quarter: processes exchange at different moments, so what one admitted
in an epoch may reach another only after that one's next epoch. With a share of 1 / (c * processes) and S(k) the part of
the limit that all have admitted after k epochs, at worst

    S(k+1) = S(k) + (1 - S(k-1)) / c

whose characteristic equation x^2 - x + 1/c = 0 has real roots, and S no overshoot, for c >= 4. What remains are the
first requests, which are admitted without a share: two for each further process at the most. One process alone is not
held back at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from uuid import UUID

_CAUTION = 4
"""`c` above."""


@dataclass(frozen=True, slots=True)
class Use:
    """What one process admitted of a bucket in one second (Unix seconds); negative: given back."""

    bucket: str
    second: int
    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Told:
    """What one process told at once; `id` grows, and names it for who reads it twice."""

    id: int
    process: UUID
    uses: tuple[Use, ...]


class RateLog:
    """What this process admitted since it last told, and how many processes there are; `epoch` counts exchanges."""

    def __init__(self) -> None:
        self._uses: dict[tuple[str, int], list[int]] = {}
        self.processes = 1
        self.epoch = 0
        self.is_busy = False
        """Whether there is something to tell, or somebody was refused for want of news, since the last exchange."""

    def use(self, bucket: str, second: int, requests: int, tokens: int) -> None:
        """Note what was admitted or given back."""
        self.is_busy = True
        found = self._uses.get((bucket, second))
        if found is None:
            self._uses[bucket, second] = [requests, tokens]
        else:
            found[0] += requests
            found[1] += tokens

    def hand_out(self) -> tuple[Use, ...]:
        """Return what is to be told; `kept` takes it back when it was not."""
        uses, self._uses = self._uses, {}
        self.is_busy = False
        return tuple(
            Use(bucket, second, requests, tokens)
            for (bucket, second), (requests, tokens) in uses.items()
            if requests or tokens
        )

    def kept(self, uses: Iterable[Use], *, since: int) -> None:
        """Take back what did not reach the others; what lies before `since` matters no more."""
        for each in uses:
            if each.second >= since:
                self.use(each.bucket, each.second, each.requests, each.tokens)

    def exchanged(self, processes: int) -> None:
        """Begin the next epoch among `processes` processes, this one included."""
        self.processes = max(1, processes)
        self.epoch += 1


class Share:
    """What one bucket admitted in the present epoch, of one amount (requests, or tokens)."""

    __slots__ = ("_epoch", "_taken")

    def __init__(self) -> None:
        self._epoch = -1
        self._taken = 0

    def allows(self, amount: int, left: int, log: RateLog) -> bool:
        """Tell whether `amount` may be admitted here now; `left` is what the window has left, `amount` fits in it."""
        if log.processes == 1 or self._epoch != log.epoch or self._taken <= 0:
            return True
        fits = (self._taken + amount) * log.processes * _CAUTION <= left + self._taken
        log.is_busy = log.is_busy or not fits
        return fits

    def take(self, amount: int, log: RateLog) -> None:
        """Count what was admitted."""
        if self._epoch != log.epoch:
            self._epoch, self._taken = log.epoch, 0
        self._taken += amount

    def correct(self, amount: int, log: RateLog) -> None:
        """Correct what was counted in this epoch; what an earlier one admitted is in the window alone."""
        if self._epoch == log.epoch:
            self._taken = max(0, self._taken + amount)


Learn = Callable[[Iterable[Use]], None]
"""Counts what another process admitted."""
