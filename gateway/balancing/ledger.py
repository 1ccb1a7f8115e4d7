"""What is left of one quota for one model family: reserved before sending, settled after, corrected by every header.

A ledger holds one meter for each dimension whose limit is configured or was told by the provider. The effective limit
is the smaller of the two, so that a deliberate cap stays a cap and a wrong configuration is found out (`told`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import inf, nan

from gateway.balancing.decision import Ask
from gateway.balancing.hints import Hint, WindowHint
from gateway.balancing.limiter import Bucket, FixedWindow, Meter, SlidingWindow
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.quota import Limits
from gateway.balancing.semantics import Semantics

MINUTE_S = 60.0
DAY_S = 86400.0
COOLDOWN_MIN_S = 0.05
COOLDOWN_CAP_S = 300.0
"""No provider's word stops a quota for longer without being asked again."""
BLIND_COOLDOWN_S = 0.5
"""The first cool-down after a 429 that says nothing; it doubles with each further one, up to a minute."""
PRESSED_STRETCH = 0.5
PRESSED_CAP = 6.0
PRESSED_RELIEF = 0.25
"""See `Ledger._back_off`: what a 429 adds to the next wait, for how many at most, and what a success takes off."""


class Dimension(IntEnum):
    """What a limit counts, and over which window."""

    RPM = 0
    TPM = 1
    ITPM = 2
    OTPM = 3
    RPD = 4
    TPD = 5


_REQUESTS = (Dimension.RPM, Dimension.RPD)
_TOTALS = (Dimension.TPM, Dimension.TPD)
_REFUNDED_TOKENS = frozenset(
    {OutcomeKind.RATE_LIMITED, OutcomeKind.CLIENT_ERROR, OutcomeKind.SERVER_ERROR, OutcomeKind.AUTH_REJECTED}
)


@dataclass(slots=True)
class Reservation:
    """What one open lease took: for each meter the amount, and the meter's `taken` right after."""

    started_at: float
    input_tokens: float
    output_tokens: float
    entries: list[tuple[Dimension, Meter, float, float]]
    told: tuple[Dimension, ...] = ()
    """Dimensions that this lease's own response head has corrected."""


class Ledger:
    """One quota's account for one family; owned and driven by the balancer.

    `unix_offset_s` turns the balancer's clock into Unix time (unix = now + offset), for windows aligned to the day.
    Invariant: after `reserve` was preceded by `ready_at(...) <= now`, no meter is below zero.
    """

    __slots__ = (
        "_limits",
        "_meters",
        "_pressed",
        "_semantics",
        "_share",
        "_share_at",
        "_told_as_of",
        "_unix_offset_s",
        "cooldown_until",
        "limited",
        "strikes",
        "told",
        "used_at",
    )

    def __init__(self, limits: Limits, semantics: Semantics, now: float, *, unix_offset_s: float = 0.0) -> None:
        self._limits: dict[Dimension, int] = {}
        self._meters: list[tuple[Dimension, int, Meter]] = []
        self._share = 1.0
        self._share_at = nan
        self._semantics = semantics
        self._unix_offset_s = unix_offset_s
        self._told_as_of = -inf
        self._pressed = 0.0
        self.used_at = now
        self.cooldown_until = -inf
        self.strikes = 0
        self.limited = 0
        """429s in all."""
        self.told: dict[Dimension, int] = {}
        """Limits as the provider last named them."""
        self.configure(limits, now)

    def configure(self, limits: Limits, now: float) -> None:
        """Take over changed limits; what is in use stays in use."""
        self._limits = {
            dimension: value
            for dimension in Dimension
            if (value := getattr(limits, dimension.name.lower())) is not None
        }
        self._share_at = nan
        for dimension in Dimension:
            self._fit(dimension, now)

    def _effective(self, dimension: Dimension) -> int | None:
        configured, told = self._limits.get(dimension), self.told.get(dimension)
        if configured is None or told is None:
            return told if configured is None else configured
        return min(configured, told)

    def _fit(self, dimension: Dimension, now: float) -> None:
        """Make, resize or drop the meter so that it enforces the effective limit."""
        limit = self._effective(dimension)
        meter = self.meter(dimension)
        if limit is None:
            if meter is not None:
                self._meters = [row for row in self._meters if row[0] is not dimension]
            return
        semantics = self._semantics
        kind, window_s, phase = semantics.minute, MINUTE_S, -self._unix_offset_s
        amount = float(limit)
        if dimension in (Dimension.RPD, Dimension.TPD):
            kind, window_s = semantics.day, DAY_S
            phase -= semantics.day_utc_offset_s
        elif dimension is Dimension.RPM and semantics.request_window_s != MINUTE_S:
            window_s = semantics.request_window_s
            amount = max(1.0, amount * window_s / MINUTE_S)
        if meter is not None:
            if meter.limit != amount:
                meter.resize(amount, now)
            return
        made: Meter
        if kind == "continuous":
            made = Bucket(amount, window_s, now)
        elif kind == "fixed":
            made = FixedWindow(amount, window_s, now, phase=phase)
        else:
            made = SlidingWindow(amount, window_s, now)
        self._meters.append((dimension, self._unit(dimension), made))

    def meter(self, dimension: Dimension) -> Meter | None:
        """Give the meter of a dimension, if it is limited."""
        for known, _, meter in self._meters:
            if known is dimension:
                return meter
        return None

    def _unit(self, dimension: Dimension) -> int:
        """Give which of (1, input, output, total) a dimension counts."""
        if dimension in _REQUESTS:
            return 0
        if dimension is Dimension.OTPM:
            return 2
        return 3 if dimension in _TOTALS else 1

    def _sizes(self, input_tokens: float, output_tokens: float) -> tuple[float, float, float, float]:
        kind = self._semantics.total
        if kind == "sum":
            return 1.0, input_tokens, output_tokens, input_tokens + output_tokens
        total = input_tokens if kind == "input" or input_tokens > output_tokens else output_tokens
        return 1.0, input_tokens, output_tokens, total

    def output_of(self, ask: Ask) -> float:
        """Give the output tokens that the provider reserves for `ask`."""
        unset = self._semantics.unset_output
        return unset if ask.output_unset and unset is not None else ask.est_output_tokens

    def _capped(self, amount: float, limit: float, input_tokens: float) -> float:
        """An estimate of output above the whole limit is only an estimate, unless the provider refuses on it."""
        return amount if input_tokens > limit or self._semantics.strict_estimate else limit

    def ready_at(self, input_tokens: float, output_tokens: float, now: float) -> float:
        """Give the moment from which one request of this size fits every limit; <= now: at once; inf: never."""
        at, least = self.cooldown_until, 1.0
        sizes = self._sizes(input_tokens, output_tokens)
        for _, unit, meter in self._meters:
            amount, limit = sizes[unit], meter.limit
            if amount > limit:
                amount = self._capped(amount, limit, input_tokens)
            available = meter.available(now)
            if available < amount and (free_at := meter.earliest(amount, now)) > at:
                at = free_at
            if available < least * limit:
                least = available / limit
        self._share, self._share_at = least if least > 0.0 else 0.0, now
        return at

    def headroom(self, now: float) -> float:
        """Give the smallest free share of any limit, 0..1; 1 when nothing is limited, 0 while cooling down."""
        if self.cooldown_until > now:
            return 0.0
        if self._share_at != now:
            self.ready_at(0.0, 0.0, now)
        return self._share

    def reserve(self, input_tokens: float, output_tokens: float, now: float) -> Reservation:
        """Take one request of this size from every meter."""
        self.used_at, self._share_at = now, nan
        entries: list[tuple[Dimension, Meter, float, float]] = []
        sizes = self._sizes(input_tokens, output_tokens)
        for dimension, unit, meter in self._meters:
            amount = sizes[unit]
            if amount > meter.limit:
                amount = self._capped(amount, meter.limit, input_tokens)
            meter.take(amount, now)
            entries.append((dimension, meter, amount, meter.taken))
        return Reservation(now, input_tokens, output_tokens, entries)

    def settle(self, reservation: Reservation, outcome: Outcome, now: float) -> None:
        """Give the lease's outcome to the meters and the cool-down; the hint, if any, was given to `learn` before."""
        kind = outcome.kind
        if kind is OutcomeKind.RATE_LIMITED:
            self._cool_down(outcome.hint, now)
        elif kind is OutcomeKind.OK:
            self.strikes = 0
            if self._pressed > 0.0:
                self._pressed -= PRESSED_RELIEF
        self._share_at = nan
        for dimension, meter, reserved, _ in reservation.entries:
            delta = self._correction(dimension, reserved, reservation, outcome)
            if delta:
                meter.adjust(delta, reservation.started_at, now)
        if kind is OutcomeKind.RATE_LIMITED and self._semantics.minute == "continuous":
            self._back_off(reservation, now)

    def _back_off(self, reservation: Reservation, now: float) -> None:
        """Wait longer after each 429 of many, in units of the time in which the request's own share refills.

        Where refused requests count and somebody else draws on the quota too, one that comes as soon as it would fit by
        our account is refused and eats what has refilled, again and again: nothing would ever get through.
        """
        free_at = max((meter.earliest(amount, now) for _, meter, amount, _ in reservation.entries), default=now)
        if self._pressed > 0.0 and free_at < inf:
            wait_s = (free_at - now) * (1.0 + PRESSED_STRETCH * self._pressed)
            self.cooldown_until = max(self.cooldown_until, now + min(wait_s, COOLDOWN_CAP_S))
        self._pressed = min(PRESSED_CAP, self._pressed + 1.0)

    def _correction(self, dimension: Dimension, reserved: float, reservation: Reservation, outcome: Outcome) -> float:
        """Give what is to be charged beyond the reservation (negative: refunded)."""
        kind, told = outcome.kind, dimension in reservation.told
        if kind is OutcomeKind.CONNECT_FAILED:
            return -reserved
        if told and kind is not OutcomeKind.OK:
            return 0.0
        if dimension in _REQUESTS:
            return -reserved if kind is OutcomeKind.RATE_LIMITED and not self._semantics.counts_failed else 0.0
        if kind in _REFUNDED_TOKENS:
            return -reserved
        usage = outcome.usage
        if usage is None or not self._semantics.settles:
            return 0.0
        charged_input = float(usage.input if self._semantics.counts_cached else usage.input - usage.cached_input)
        # Where the head told the remainder, the provider had counted the input already: only the output is still open.
        input_delta = 0.0 if told else charged_input - reservation.input_tokens
        output_delta = usage.output - reservation.output_tokens
        if dimension is Dimension.ITPM:
            return max(-reserved, input_delta)
        if dimension is Dimension.OTPM:
            return max(-reserved, output_delta)
        return max(-reserved, input_delta + (0.0 if self._semantics.total == "input" else output_delta))

    def _cool_down(self, hint: Hint | None, now: float) -> None:
        self.limited += 1
        self.strikes += 1
        delay_s = hint.retry_after_s if hint is not None else None
        if delay_s is None and hint is not None:
            spent = (hint.requests, hint.tokens, hint.input_tokens, hint.output_tokens)
            delay_s = max((w.reset_s for w in spent if w and w.remaining == 0 and w.reset_s is not None), default=None)
        if delay_s is None:
            delay_s = min(MINUTE_S, BLIND_COOLDOWN_S * 2.0 ** min(self.strikes - 1, 10))
        self.cooldown_until = max(self.cooldown_until, now + min(max(delay_s, COOLDOWN_MIN_S), COOLDOWN_CAP_S))

    def learn(self, reservation: Reservation, hint: Hint, now: float) -> None:
        """Correct the meters by what the response head of this reservation told."""
        self._share_at = nan
        newest = reservation.started_at >= self._told_as_of
        requests = Dimension.RPD if hint.requests_per_day else Dimension.RPM
        for dimension, window in (
            (requests, hint.requests),
            (Dimension.TPM, hint.tokens),
            (Dimension.ITPM, hint.input_tokens),
            (Dimension.OTPM, hint.output_tokens),
        ):
            if window is not None:
                self._correct(dimension, window, reservation, now, newest=newest)
        if newest:
            self._told_as_of = reservation.started_at

    def _correct(
        self, dimension: Dimension, window: WindowHint, reservation: Reservation, now: float, *, newest: bool
    ) -> None:
        # In a sub-window the named limit may be the minute's or the sub-window's: only the remainder is sure.
        split = dimension is Dimension.RPM and self._semantics.request_window_s != MINUTE_S
        if window.limit is not None and window.limit > 0 and not split and self.told.get(dimension) != window.limit:
            self.told[dimension] = window.limit
            self._fit(dimension, now)
        meter = self.meter(dimension)
        if meter is None or window.remaining is None or not newest:
            return
        told_limit = window.limit if window.limit is not None else self.told.get(dimension)
        remaining = float(window.remaining)
        if told_limit is None or meter.limit < told_limit:
            # Our own cap is the smaller: the provider's remainder may tighten it, never widen it.
            if remaining >= meter.available(now):
                return
            meter.resync(remaining, as_of=now, mark=meter.taken, reset_s=window.reset_s, now=now)
        else:
            mark = next((mark for _, known, _, mark in reservation.entries if known is meter), meter.taken)
            meter.resync(remaining, as_of=reservation.started_at, mark=mark, reset_s=window.reset_s, now=now)
        reservation.told = (*reservation.told, dimension)

    @property
    def is_daily(self) -> bool:
        """Tell whether any limit is a day's."""
        return any(dimension in (Dimension.RPD, Dimension.TPD) for dimension, _, _ in self._meters)

    def requests_per_minute(self) -> float | None:
        """Give the effective request rate, or failing that the token rate, as a figure of capacity; None: not known."""
        for dimension, per_request in ((Dimension.RPM, 1.0), (Dimension.TPM, 1000.0), (Dimension.ITPM, 1000.0)):
            limit = self._effective(dimension)
            if limit is not None:
                return limit / per_request
        return None

    def limits(self, now: float) -> dict[str, tuple[float, float]]:
        """Give (limit, available) by dimension name, for views."""
        return {dimension.name.lower(): (meter.limit, meter.available(now)) for dimension, _, meter in self._meters}

    def misconfigured(self) -> dict[str, tuple[int, int]]:
        """Give (configured, told) where the configured limit is above what the provider grants."""
        return {
            dimension.name.lower(): (configured, self.told[dimension])
            for dimension, configured in self._limits.items()
            if dimension in self.told and configured > self.told[dimension]
        }
