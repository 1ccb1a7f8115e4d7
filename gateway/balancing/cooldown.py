"""How long a quota is left alone after a 429: as told, or doubling when nothing was told, longer when pressed."""

from __future__ import annotations

from math import inf

from gateway.balancing.hints import Hint

COOLDOWN_MIN_S = 0.05
COOLDOWN_CAP_S = 300.0
"""No provider's word stops a quota for longer without being asked again."""
BLIND_COOLDOWN_S = 0.5
BLIND_CAP_S = 60.0
"""The first cool-down after a 429 that says nothing, and where doubling it with each further one ends."""
PRESSED_STRETCH = 0.5
PRESSED_CAP = 6.0
PRESSED_RELIEF = 0.25
"""See `Cooldown.pressed`: what a 429 adds to the next wait, for how many at most, and what a success takes off."""


class Cooldown:
    """One ledger's refusals. `until`: not asked before; `strikes`: 429s since a success; `limited`: 429s in all."""

    __slots__ = ("_pressure", "limited", "strikes", "until")

    def __init__(self) -> None:
        self.until = -inf
        self.strikes = 0
        self.limited = 0
        self._pressure = 0.0

    def succeeded(self) -> None:
        """Take in a success."""
        self.strikes = 0
        if self._pressure > 0.0:
            self._pressure -= PRESSED_RELIEF

    def refused(self, hint: Hint | None, now: float) -> None:
        """Take in a 429 with what it told: a delay, or when a spent window is full again."""
        self.limited += 1
        self.strikes += 1
        delay_s = hint.retry_after_s if hint is not None else None
        if delay_s is None and hint is not None:
            spent = (hint.requests, hint.tokens, hint.input_tokens, hint.output_tokens)
            delay_s = max((w.reset_s for w in spent if w and w.remaining == 0 and w.reset_s is not None), default=None)
        if delay_s is None:
            delay_s = min(BLIND_CAP_S, BLIND_COOLDOWN_S * 2.0 ** min(self.strikes - 1, 10))
        self.until = max(self.until, now + min(max(delay_s, COOLDOWN_MIN_S), COOLDOWN_CAP_S))

    def pressed(self, free_at: float, now: float) -> None:
        """Wait longer after each 429 of many, in units of the time until the request would fit again (`free_at`).

        Where refused requests count and somebody else draws on the quota too, one that comes as soon as it would fit by
        our account is refused and eats what has refilled, again and again: nothing would ever get through.
        """
        if self._pressure > 0.0 and free_at < inf:
            wait_s = (free_at - now) * (1.0 + PRESSED_STRETCH * self._pressure)
            self.until = max(self.until, now + min(wait_s, COOLDOWN_CAP_S))
        self._pressure = min(PRESSED_CAP, self._pressure + 1.0)
