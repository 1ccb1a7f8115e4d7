"""What can go wrong at a provider, on demand: per key, per request header, or by an admin call.

| kind | what the caller sees |
|---|---|
| `status` | `status` (429, 500, 503, 401 …) with an error body, `retry_after_s` as `Retry-After` |
| `reset` | the connection is closed before a byte of the answer |
| `hang` | nothing, for `delay_s` seconds or until the caller leaves |
| `delay` | the answer, `delay_s` late |
| `cut` | the connection is closed after `after` chunks (half of a plain body) |
| `stall` | like `cut`, but the connection stays open and silent |
| `slow` | each chunk `delay_s` after the one before (a plain body in pieces of 16 bytes) |
| `stream_error` | an error event before the first content of a stream, or after `after` chunks; 500 without a stream |
| `malformed` | bytes that are no JSON, with status 200 |
| `short_body` | a Content-Length larger than the body, then the connection closes |

The header `x-sim-fault` takes the same as JSON or as `kind`, `kind:argument` (`status:429`, `cut:3`, `delay:0.5`).
"""

from __future__ import annotations

import math
import random
from enum import StrEnum

import msgspec


class FaultKind(StrEnum):
    """The table above."""

    STATUS = "status"
    RESET = "reset"
    HANG = "hang"
    DELAY = "delay"
    CUT = "cut"
    STALL = "stall"
    SLOW = "slow"
    STREAM_ERROR = "stream_error"
    MALFORMED = "malformed"
    SHORT_BODY = "short_body"


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One fault: `rate` of the requests meet it (0 to 1), at most `times` of them (None: for ever)."""

    kind: FaultKind
    rate: float = 1.0
    times: int | None = None
    status: int = 500
    after: int | None = None
    delay_s: float | None = None
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError("`rate` is a share of the requests: 0 to 1")
        if not 400 <= self.status <= 599:
            raise ValueError("`status` is an error: 400 to 599")
        if self.delay_s is not None and not (self.delay_s >= 0 and math.isfinite(self.delay_s)):
            raise ValueError("`delay_s` is a number of seconds, 0 or more")
        if self.after is not None and self.after < 0:
            raise ValueError("`after` is a number of chunks, 0 or more")


class FaultPlan:
    """The faults that wait for the requests of one key; the first that fires is the one."""

    def __init__(self, faults: tuple[Fault, ...] = ()) -> None:
        self._left: list[tuple[Fault, float]] = []
        self.replace(faults)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Return the faults that may still fire."""
        return tuple(fault for fault, left in self._left if left > 0)

    def replace(self, faults: tuple[Fault, ...]) -> None:
        """Forget all faults and take these."""
        self._left = [(fault, math.inf if fault.times is None else fault.times) for fault in faults]

    def draw(self, rng: random.Random) -> Fault | None:
        """Return the fault that the next request meets, or None."""
        for place, (fault, left) in enumerate(self._left):
            if left > 0 and (fault.rate >= 1 or rng.random() < fault.rate):
                self._left[place] = (fault, left - 1)
                return fault
        return None


_ARGUMENT = {
    FaultKind.STATUS: ("status", int),
    FaultKind.HANG: ("delay_s", float),
    FaultKind.DELAY: ("delay_s", float),
    FaultKind.SLOW: ("delay_s", float),
    FaultKind.CUT: ("after", int),
    FaultKind.STALL: ("after", int),
    FaultKind.STREAM_ERROR: ("after", int),
}


def parse_fault(text: str) -> Fault:
    """Read the header form of a fault; raises ValueError that says what is allowed."""
    if text.startswith("{"):
        try:
            return msgspec.json.decode(text, type=Fault)
        except msgspec.MsgspecError as error:
            raise ValueError(f"x-sim-fault: {error}") from error
    word, _, argument = text.partition(":")
    try:
        kind = FaultKind(word.strip())
    except ValueError:
        raise ValueError(f"x-sim-fault: unknown kind {word!r}; use one of {', '.join(FaultKind)}") from None
    if not argument:
        return Fault(kind=kind)
    if kind not in _ARGUMENT:
        raise ValueError(f"x-sim-fault: {kind} takes no argument")
    field, convert = _ARGUMENT[kind]
    try:
        return msgspec.convert({"kind": kind.value, field: convert(argument)}, Fault)
    except (ValueError, msgspec.ValidationError) as error:
        raise ValueError(f"x-sim-fault: {field} {argument!r}: {error}") from error
