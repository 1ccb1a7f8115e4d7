"""Which window enforces a limit, by the provider's way to count, and the meter that counts in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.balancing.charging import DAILY, Dimension
from gateway.balancing.limiter import Bucket, FixedWindow, LocalDay, Meter, SlidingWindow
from gateway.balancing.pacific import next_midnight
from gateway.balancing.semantics import Semantics, WindowKind

MINUTE_S = 60.0
DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class Window:
    """`amount` in each `window_s` seconds; `phase` (balancer's clock) is when some fixed window begins.

    `midnight`: days end at the next one that it gives, and are of unlike length.
    """

    kind: WindowKind
    window_s: float
    phase: float
    amount: float
    midnight: Callable[[float], float] | None = None


def window_of(
    semantics: Semantics, dimension: Dimension, limit: float, unix_offset_s: float, learned_phase: float | None
) -> Window:
    """Give the window of a limit; `learned_phase`: a refusal has told when a window of this dimension ends."""
    kind, window_s, phase = semantics.minute, MINUTE_S, -unix_offset_s
    if dimension in DAILY:
        kind, window_s = semantics.day, DAY_S
        if semantics.pacific_day and kind == "fixed":

            def midnight(now: float) -> float:
                return next_midnight(now + unix_offset_s) - unix_offset_s

            return Window(kind, window_s, phase, limit, midnight)
    elif dimension is Dimension.RPM and semantics.request_window_s != MINUTE_S:
        window_s = semantics.request_window_s
        limit = max(1.0, limit * window_s / MINUTE_S)
    if semantics.fixed_unknown and learned_phase is not None:
        kind, phase = "fixed", learned_phase
    return Window(kind, window_s, phase, limit)


def fit_meter(meter: Meter | None, window: Window, semantics: Semantics, now: float) -> Meter:
    """Give the meter that counts in `window` from now on: `meter` with what it has counted, or another one."""
    if meter is None:
        if window.kind == "continuous":
            return Bucket(window.amount, window.window_s, now)
        if window.midnight is not None:
            return LocalDay(window.amount, now, window.midnight)
        if window.kind == "fixed":
            return FixedWindow(window.amount, window.window_s, now, phase=window.phase)
        return SlidingWindow(window.amount, window.window_s, now)
    if window.kind == "fixed" and isinstance(meter, SlidingWindow):
        # The phase has become known: the account goes on in the provider's own windows.
        used = meter.limit - meter.available(now)
        fixed = FixedWindow(window.amount, window.window_s, now, phase=window.phase)
        fixed.take(max(0.0, used) * fixed.spent(now), now)
        return fixed
    if semantics.fixed_unknown and window.kind == "fixed" and isinstance(meter, FixedWindow):
        meter.rephase(window.phase, now)
    if meter.limit != window.amount:
        meter.resize(window.amount, now)
    return meter
