"""When beliefs about a limiter are set aside: where its margin buys nothing, or limits that were raised do not hold.

What a margin buys is only seen without it. So for `TRIAL_S` of every `TRIAL_EVERY_S` there is none, and the requests
that it would have held back are counted: but only once the account has been emptied, as it always is without a margin.
Those before live off the level that the margin had left, and would show that it is never needed. One refusal ends the
slice: it says enough. The cost is one 429 a slice at most, the time that would be lost otherwise is none.
"""

from __future__ import annotations

from math import inf

from gateway.balancing.ewma import DecayingCounts

TRIAL_EVERY_S = 300.0
TRIAL_S = 6.0
TRIAL_TAU_S = 1800.0
BOLD_TAU_S = 300.0
RATIO = 1.2
"""Worse by a fifth is worse."""
BOLD_SAMPLES, OTHER_SAMPLES = 32.0, 8.0
BOLD_LEAST = 0.25
"""What was proven is not given up for a few 429s, which others' use brings as well: each costs a retry, a raised limit
that is taken back costs its whole part of the quota."""
MARGIN_LEAST = 0.01
"""Where fewer than this share is refused a margin fades by itself."""
FALLBACK_S = 600.0


class Guard:
    """One limiter's counts; `fallback_until`: beliefs are set aside, a trial goes from `trial_at` to `trial_ends`."""

    __slots__ = ("_bold", "_emptied", "_held", "_others", "_trials", "fallback_until", "trial_at", "trial_ends")

    def __init__(self) -> None:
        self._trials = DecayingCounts(TRIAL_TAU_S)
        self._held = DecayingCounts(TRIAL_TAU_S)
        self._bold = DecayingCounts(BOLD_TAU_S)
        self._others = DecayingCounts(BOLD_TAU_S)
        self._emptied = False
        self.trial_at = inf
        self.trial_ends = -inf
        self.fallback_until = -inf

    def plan(self, now: float) -> None:
        """Let the next trial follow, once one is over; to be called while there is a margin."""
        if now >= self.trial_ends:
            self.trial_at = now + TRIAL_EVERY_S
            self.trial_ends = self.trial_at + TRIAL_S
            self._emptied = False

    def in_trial(self, now: float) -> bool:
        """Tell whether the margin is left out just now."""
        return self.trial_at <= now < self.trial_ends

    def tried(self, *, held_back: bool, emptied: bool) -> bool:
        """Take in a request of a trial: whether the margin would have held it back, and whether it left no room for
        another like it; tells whether its outcome is evidence."""
        counts = self._emptied and held_back
        self._emptied |= emptied
        return counts

    def count(self, *, refused: bool, trial: bool, margin: bool, bold: bool, now: float) -> bool:
        """Take in an outcome; True: limits that were raised are to be taken back.

        `trial`: it is evidence of one, `margin`: one was in force, `bold`: above the configured limit.
        """
        if refused and self.trial_at <= now < self.trial_ends:
            self.trial_ends = now
        if trial:
            self._trials.add(now, failed=refused)
        elif margin:
            self._held.add(now, failed=refused)
        (self._bold if bold else self._others).add(now, failed=refused)
        if now < self.fallback_until:
            return False
        rash = (
            self._bold.total >= BOLD_SAMPLES
            and self._others.total >= OTHER_SAMPLES
            and self._bold.failure_share > RATIO * max(self._others.failure_share, BOLD_LEAST)
        )
        if rash or (trial and self._is_needless()):
            self.fallback_until = now + FALLBACK_S
            for counts in (self._trials, self._held, self._bold, self._others):
                counts.clear()
        return rash

    def _is_needless(self) -> bool:
        """Tell whether as good as no more were refused without the margin; one refusal more would have to be as good,
        so that a few lucky ones prove nothing."""
        without = self._trials.failure_share + 1.0 / self._trials.total
        return without <= RATIO * max(self._held.failure_share, MARGIN_LEAST)

    @property
    def trials_refused_share(self) -> float | None:
        """The share of the trials that was refused; None: there was none."""
        return self._trials.failure_share if self._trials.total > 0.0 else None
