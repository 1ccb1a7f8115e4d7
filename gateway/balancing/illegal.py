"""What a driver must not do: a defect of the program, never an expected answer."""

from __future__ import annotations


class UnknownLease(RuntimeError):
    """The lease was never given out, or was observed already."""


class IllegalEvent(RuntimeError):
    """The driver reported something that cannot happen in this state."""
