"""What one request costs in each limited dimension: at admission, and what its outcome corrects afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from gateway.balancing.limiter import Meter
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.semantics import Semantics


class Dimension(IntEnum):
    """What a limit counts, and over which window."""

    RPM = 0
    TPM = 1
    ITPM = 2
    OTPM = 3
    RPD = 4
    TPD = 5


REQUESTS = (Dimension.RPM, Dimension.RPD)
DAILY = (Dimension.RPD, Dimension.TPD)
NO_OUTPUT = frozenset({*REQUESTS, Dimension.ITPM})
OUTPUT = 2
"""Where the output stands among the `Sizes`."""
_TOTALS = (Dimension.TPM, Dimension.TPD)
_REFUNDED_TOKENS = frozenset(
    {OutcomeKind.RATE_LIMITED, OutcomeKind.CLIENT_ERROR, OutcomeKind.SERVER_ERROR, OutcomeKind.AUTH_REJECTED}
)


@dataclass(slots=True)
class Reservation:
    """What one open lease took: for each meter the amount, and the meter's `taken` right after.

    `told` are the dimensions that this lease's own response head has corrected. `proof` is what was in use, by
    dimension, when a probe went beyond the believed limit; `trial` marks one sent in spite of a margin.
    """

    started_at: float
    input_tokens: float
    output_tokens: float
    entries: list[tuple[Dimension, Meter, float, float]]
    told: tuple[Dimension, ...] = ()
    proof: tuple[tuple[Dimension, float], ...] = ()
    trial: bool = False


def unit_of(dimension: Dimension) -> int:
    """Give which of the `Sizes` a dimension counts."""
    if dimension in REQUESTS:
        return 0
    if dimension is Dimension.OTPM:
        return OUTPUT
    return 3 if dimension in _TOTALS else 1


Sizes = tuple[float, float, float, float]
"""What a request counts: (requests, input, output, total tokens)."""


def _sum(input_tokens: float, output_tokens: float) -> Sizes:
    return 1.0, input_tokens, output_tokens, input_tokens + output_tokens


def _larger(input_tokens: float, output_tokens: float) -> Sizes:
    return 1.0, input_tokens, output_tokens, input_tokens if input_tokens > output_tokens else output_tokens


def _input(input_tokens: float, output_tokens: float) -> Sizes:
    return 1.0, input_tokens, output_tokens, input_tokens


SIZES: Mapping[str, Callable[[float, float], Sizes]] = {"sum": _sum, "max": _larger, "input": _input}
"""By `Semantics.total`: gives the sizes of a request of so many input and output tokens."""


def correction(
    semantics: Semantics,
    dimension: Dimension,
    reserved: float,
    reservation: Reservation,
    outcome: Outcome,
    *,
    learned: bool,
) -> float:
    """Give what is to be charged beyond the reservation (negative: refunded); `learned`: limits are learned."""
    kind, told = outcome.kind, dimension in reservation.told
    if kind is OutcomeKind.CONNECT_FAILED:
        return -reserved
    if told and kind is not OutcomeKind.OK:
        return 0.0
    if dimension in REQUESTS:
        counts = semantics.counts_failed if semantics.counts_failed is not None else not learned
        return -reserved if kind is OutcomeKind.RATE_LIMITED and not counts else 0.0
    if kind in _REFUNDED_TOKENS:
        return -reserved
    usage = outcome.usage
    if usage is None or not semantics.settles:
        return 0.0
    charged_input = float(usage.input if semantics.counts_cached else usage.input - usage.cached_input)
    # Where the head told the remainder, the provider had counted the input already: only the output is still open.
    input_delta = 0.0 if told else charged_input - reservation.input_tokens
    # An estimate that is larger than the whole limit was taken only up to it: no more than that can be given back.
    estimated = SIZES[semantics.total](reservation.input_tokens, reservation.output_tokens)[unit_of(dimension)]
    output_delta = usage.output - reservation.output_tokens + max(0.0, estimated - reserved)
    if dimension is Dimension.ITPM:
        return max(-reserved, input_delta)
    if dimension is Dimension.OTPM:
        return max(-reserved, output_delta)
    return max(-reserved, input_delta + (0.0 if semantics.total == "input" else output_delta))
