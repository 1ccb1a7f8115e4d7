"""Requests in flight of one model family of a quota, and how many there may be.

The cap is the smaller of what an operator configured and what the provider named in a refusal; processes that share the
quota divide it among them. Many providers refuse for too many requests in flight without saying how many they allow:
then one fewer than were in flight here is assumed. Either is raised when it has been reached and nothing was refused
for a while, so that a wrong belief ends by itself.

Invariant: while every start was preceded by `in_flight < slots` (or `slots` None), `in_flight` is at most what `slots`
was at that start; every start is ended exactly once.
"""

from __future__ import annotations

from math import inf

GUESS_HOLDS_S = 60.0
TOLD_HOLDS_S = 600.0
"""So long after the last refusal a guessed cap, or one that the provider named, is tried again."""
MAX_TOLD = 1_000_000


class Concurrency:
    """One family's requests in flight; single-threaded.

    `slots`: how many may be in flight here, None: any number. Callers count `in_flight` themselves: it is on the way of
    every request.
    """

    __slots__ = (
        "_among", "_granted", "_guess", "_refused_at", "configured", "in_flight", "slots", "told", "within",
    )  # fmt: skip

    def __init__(self) -> None:
        self.in_flight = 0
        self.slots: int | None = None
        self.configured: int | None = None
        self.within: int | None = None
        """What is configured for all families together, where this one is all of them; enforced elsewhere."""
        self.told: int | None = None
        """As the provider last named it, or what was found since."""
        self._guess: int | None = None
        self._granted: int | None = None
        self._among = 1
        self._refused_at = -inf

    @property
    def cap(self) -> int | None:
        """How many may be in flight in all processes together."""
        if self.configured is None or self.told is None:
            return self.told if self.configured is None else self.configured
        return min(self.configured, self.told)

    @property
    def source(self) -> str:
        """Say where the tightest cap comes from."""
        cap = self.cap
        if self._guess is not None and (cap is None or self._guess < cap):
            return "learned"
        return "configured" if cap == self.configured else "provider"

    def limits(self) -> dict[str, tuple[float, float]]:
        """Give (limit, available) under its name, for views; nothing where there is no cap."""
        return {} if self.slots is None else {"concurrency": (float(self.slots), float(self.slots - self.in_flight))}

    def misconfigured(self) -> dict[str, tuple[int, int]]:
        """Give (configured, told) where more is configured than the provider grants."""
        configured = self.within if self.configured is None else self.configured
        if configured is None or self.told is None or self.told >= configured:
            return {}
        return {"concurrency": (configured, self.told)}

    def configure(self, cap: int | None) -> None:
        """Take over a changed cap."""
        if cap != self.configured:
            self.configured = cap
            self._granted = None
            self._fit()

    def share(self, among: int) -> None:
        """Take only one part in `among` of the cap until more is granted: other processes draw on it, too."""
        self._among = among
        self._granted = None
        self._fit()

    def grant(self, amount: int | None) -> None:
        """Take over how much of the cap is this process's own; None: nobody says."""
        self._granted = amount
        self._fit()

    def tell(self, limit: int) -> None:
        """Take over a cap that the provider has named before."""
        if 0 < limit <= MAX_TOLD:
            self.told = limit
            self._fit()

    def refused(self, limit: int | None, now: float) -> None:
        """Take in that one of those in flight was refused since they were too many; `limit`: as the provider says."""
        if limit is not None and 0 < limit <= MAX_TOLD:
            self.told, self._guess = limit, None
            self._granted = None
        else:
            # Refusals come sooner than answers: the last one of a burst leaves what was admitted.
            others = max(1, self.in_flight - 1)
            self._guess = others if self._guess is None else min(self._guess, others)
        self._refused_at = now
        self._fit()

    def ended(self, now: float) -> None:
        """Take in that one was given back, so that `in_flight` is one less."""
        if self.slots is None or self.in_flight + 1 < self.slots:
            return
        quiet_s = now - self._refused_at
        if self._guess is not None and quiet_s >= GUESS_HOLDS_S:
            self._guess += max(1, self._guess // 4)
        elif self._guess is None and self.told is not None and self.cap != self.configured and quiet_s >= TOLD_HOLDS_S:
            self.told += 1
        else:
            return
        self._refused_at = now
        self._fit()

    def _fit(self) -> None:
        cap = self.cap
        slots = cap
        if cap is not None:
            slots = cap // self._among if self._granted is None else min(self._granted, cap)
        if self._guess is not None:
            if cap is not None and self._guess >= cap:
                self._guess = None
            else:
                slots = self._guess if slots is None else min(slots, self._guess)
        self.slots = slots
