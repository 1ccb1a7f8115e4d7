"""How long a quota is left alone after a 429: as told, or doubling when nothing was told, longer when pressed."""

from __future__ import annotations

from math import inf

from gateway.balancing.hints import Hint

COOLDOWN_MIN_S = 0.05
COOLDOWN_CAP_S = 300.0
"""No provider's word stops a quota for longer without being asked again, but that its day's limit is spent."""
DAY_CAP_S = 25 * 3600.0
"""The longest day, in the week that a daylight saving time ends."""
BLIND_COOLDOWN_S = 0.5
BLIND_CAP_S = 60.0
"""The first cool-down after a 429 that says nothing, and where doubling it with each further one ends."""
ALONE_S = 1.0
"""Refusals come sooner than answers: what was not refused after this time was taken."""
BELIEVED = 3
"""Told delays are taken at their word so many times in a row."""
PRESSED_STRETCH = 0.5
PRESSED_CAP = 6.0
PRESSED_RELIEF = 0.25
"""See `Cooldown.pressed`: what a 429 adds to the next wait, for how many at most, and what a success takes off."""


class Cooldown:
    """One ledger's refusals. `until`: not asked before; `strikes`: 429s since a success; `limited`: 429s in all.

    `served`: whether there was ever a success.
    """

    __slots__ = ("_alone_since", "_blind", "_pressure", "_refused_at", "limited", "served", "strikes", "until")

    def __init__(self) -> None:
        self.until = -inf
        self.strikes = 0
        self.limited = 0
        self.served = False
        self._pressure = 0.0
        self._refused_at = -inf
        self._blind = False
        self._alone_since = -inf

    def succeeded(self) -> None:
        """Take in a success."""
        self.served = True
        self.strikes = 0
        if self._blind:
            self._blind = False
            if self._alone_since > -inf:
                self.until = -inf
        if self._pressure > 0.0:
            self._pressure -= PRESSED_RELIEF

    def refused(self, hint: Hint | None, started_at: float, now: float, spent_until: float | None = None) -> bool:
        """Take in a 429 with what it told: a delay, when a spent window is full again, or when a spent day ends.

        Those that were under way when another came (`started_at` before it) are no further strike: False.
        """
        self.limited += 1
        fresh = started_at >= self._refused_at
        if fresh:
            self.strikes += 1
            self._refused_at = now
            self._alone_since = -inf
        if spent_until is not None:
            self._blind = False
            self.until = max(self.until, min(spent_until, now + DAY_CAP_S))
            return fresh
        delay_s = hint.retry_after_s if hint is not None else None
        if delay_s is None and hint is not None:
            spent = (hint.requests, hint.tokens, hint.input_tokens, hint.output_tokens)
            delay_s = max((w.reset_s for w in spent if w and w.remaining == 0 and w.reset_s is not None), default=None)
        if delay_s is None and hint is not None and hint.in_flight is not None:
            # The cap on requests in flight waits for one of them to end.
            delay_s = BLIND_COOLDOWN_S
        if delay_s is None:
            self._blind = True
            delay_s = min(BLIND_CAP_S, BLIND_COOLDOWN_S * 2.0 ** min(self.strikes - 1, 10))
        elif self.strikes > BELIEVED:
            # What was told has been untrue several times running.
            delay_s = max(delay_s, min(BLIND_CAP_S, BLIND_COOLDOWN_S * 2.0 ** min(self.strikes - BELIEVED, 10)))
        self.until = max(self.until, now + min(max(delay_s, COOLDOWN_MIN_S), COOLDOWN_CAP_S))
        return fresh

    def hear(self, until: float, now: float) -> None:
        """Take in that another process was refused, until when; no longer than if it were said to this one."""
        self.until = max(self.until, min(until, now + COOLDOWN_CAP_S))

    def sent(self, now: float) -> None:
        """Take in that a request goes out: after a 429 that told nothing one goes alone, and others if it is taken."""
        if not self._blind:
            return
        if self._alone_since > -inf:
            # It was not refused in all this time.
            self._blind = False
            self.strikes = 0
        else:
            self._alone_since = now
            self.until = now + ALONE_S

    def pressed(self, free_at: float, now: float) -> None:
        """Wait longer after each 429 of many, in units of the time until the request would fit again (`free_at`).

        Where refused requests count and somebody else draws on the quota too, one that comes as soon as it would fit by
        our account is refused and eats what has refilled, again and again: nothing would ever get through.
        """
        if self._pressure > 0.0 and free_at < inf:
            wait_s = (free_at - now) * (1.0 + PRESSED_STRETCH * self._pressure)
            self.until = max(self.until, now + min(wait_s, COOLDOWN_CAP_S))
        self._pressure = min(PRESSED_CAP, self._pressure + 1.0)
