"""What a refusal says of a quota's limits: which of them it may be put down to, and when that window ends."""

from __future__ import annotations

from collections.abc import Collection

from gateway.balancing.charging import DAILY, Dimension, Reservation
from gateway.balancing.hints import Hint
from gateway.balancing.known import named_by
from gateway.balancing.pacific import next_midnight
from gateway.balancing.semantics import Semantics
from gateway.balancing.windows import DAY_S, MINUTE_S

NEAR = 0.5
"""A refusal that explains nothing is put down to a limit of which less than this share is left."""


def suspect(
    reservation: Reservation, hint: Hint | None, told: Collection[Dimension], now: float
) -> tuple[Dimension, float] | None:
    """Give the tightest limit that nobody named (`told`: was named), with what of it our account says was in use.

    None if what the refusal named explains it, or every limit was named. Days are never suspected: they are too long
    to be found spent by one refusal.
    """
    if hint is not None and (hint.in_flight is not None or _explained(reservation, hint)):
        return None
    untold = [
        (meter.available(now) / meter.limit, dimension, meter, amount, mark)
        for dimension, meter, amount, mark in reservation.entries
        if dimension not in told and dimension not in DAILY
    ]
    if not untold:
        return None
    _, dimension, meter, amount, mark = min(untold, key=lambda row: row[:2])
    # What went out after it, often in one burst, had no part in its refusal; nor was it itself taken.
    return dimension, meter.limit - meter.available(now) - (meter.taken - mark) - amount


def _explained(reservation: Reservation, hint: Hint) -> bool:
    """Tell whether the hint names a limit of which too little was left for this request."""
    named = dict(named_by(hint))
    for dimension, _, amount, _ in reservation.entries:
        window = named.get(dimension)
        if window is not None and window.remaining is not None and window.remaining < 1.1 * amount:
            return True
    return False


def window_end(hint: Hint | None, semantics: Semantics, now: float) -> tuple[Dimension, float] | None:
    """Give which window's end a refusal's delay names, and when that is; the remainders or its length tell which."""
    delay_s = None if hint is None else hint.retry_after_s
    if hint is None or delay_s is None or not 0.0 < delay_s <= MINUTE_S:
        return None
    requests = hint.requests
    spent = delay_s <= semantics.request_window_s if requests is None else requests.remaining == 0
    return Dimension.RPM if spent else Dimension.TPM, now + delay_s


def day_end(hint: Hint | None, semantics: Semantics, now: float, unix_offset_s: float) -> float | None:
    """Give when the provider's day ends (balancer's clock), if the refusal says that the day's limit is spent.

    The delay that comes with it is not to be waited for: Gemini names one below a minute (RetryInfo) with a day's
    limit, too. None where days refill continuously: there the delay, or what is left, says when.
    """
    if hint is None or semantics.day != "fixed":
        return None
    if not any(window is not None and window.remaining == 0 for window in (hint.daily_requests, hint.daily_tokens)):
        return None
    unix = now + unix_offset_s
    ends = next_midnight(unix) if semantics.pacific_day else (unix // DAY_S + 1.0) * DAY_S
    return ends - unix_offset_s
