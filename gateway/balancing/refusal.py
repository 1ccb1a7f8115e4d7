"""What a refusal says of a quota's limits: which of them it may be put down to, and when that window ends."""

from __future__ import annotations

from collections.abc import Collection

from gateway.balancing.charging import DAILY, REQUESTS, Dimension, Reservation
from gateway.balancing.hints import Hint
from gateway.balancing.semantics import Semantics
from gateway.balancing.windows import MINUTE_S

NEAR = 0.5
"""A refusal that explains nothing is put down to a limit of which less than this share is left."""


def suspect(
    reservation: Reservation, hint: Hint | None, told: Collection[Dimension], now: float
) -> tuple[Dimension, float] | None:
    """Give the tightest limit that nobody named (`told`: was named), with what of it our account says was in use.

    None if what the refusal named explains it, or every limit was named. Days are never suspected: they are too long
    to be found spent by one refusal.
    """
    if hint is not None and _explained(reservation, hint):
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
    named = {REQUESTS[hint.requests_per_day]: hint.requests, Dimension.TPM: hint.tokens}
    named |= {Dimension.ITPM: hint.input_tokens, Dimension.OTPM: hint.output_tokens}
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
