"""The words between an `Exchange` and its driver: events go in, steps come out; values only.

Where an event is not listed for a state, the driver is broken and `IllegalEvent` says so.

| state     | event                      | what follows                                                               |
|-----------|----------------------------|----------------------------------------------------------------------------|
| new       | start                      | `Send`, `Pause` (all full), `Fail`                                          |
| sent      | Answered, kind ok          | hints learned; `Relay` -> answered                                          |
| sent      | Answered, client error     | observed; `Relay` -> relaying: the provider's own answer goes to the caller |
| sent      | Answered, other kinds      | observed; `Send` elsewhere, `Pause`, or the answer is final: `Relay`        |
| sent      | Broke                      | observed; `Send` elsewhere, `Pause`, or `Fail`                              |
| sent      | Broke, kind abandoned      | observed; `Fail`: the caller's deadline is there, and no answer             |
| sent      | Overdue                    | `Send` on a second key -> hedged, or `Await`                                |
| hedged    | Answered ok, client error  | the other attempt is observed as abandoned; as "sent, Answered"             |
| hedged    | Answered otherwise, Broke  | observed; `Await` -> sent, with the other attempt                           |
| answered  | Committed                  | `Relay` -> committed: bytes are with the caller, no way back                |
| answered  | ErrorInStream              | observed; as "Answered, other kinds"                                        |
| answered  | Broke                      | observed; as "sent, Broke"                                                  |
| answered  | Finished                   | observed with its outcome; `Done` (an answer without streaming)             |
| committed | Finished                   | observed with its outcome; `Done`                                           |
| committed | Broke, ErrorInStream       | observed; `Fail`: the driver ends the caller's stream as the dialect can    |
| relaying  | Committed                  | `Relay`                                                                     |
| relaying  | Finished, Broke            | `Done` (the lease was observed when the head arrived)                       |
| paused    | Woke                       | `Send`, `Pause`, `Fail`                                                     |
| paused    | NotParked                  | `Fail` with an honest `retry_after_s`                                       |
| any       | CallerGone                 | open leases are observed as abandoned; `Done`                               |
| over      | CallerGone, Finished       | `Done`, so that a `finally` may always report                               |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.balancing.decision import Lease, Refusal
from gateway.balancing.hints import Hint
from gateway.balancing.outcome import Outcome, OutcomeKind, TokenUsage
from gateway.balancing.value_type import value_type


@dataclass(slots=True)
class Attempt:
    """One attempt as it went; `kind` is None while it is open. Times in seconds from `started_at`.

    `hedge`: it was sent beside one that was late; `lost`: it was given up because the other one answered first.
    """

    endpoint_id: str
    started_at: float
    kind: OutcomeKind | None = None
    status: int | None = None
    first_byte_s: float | None = None
    total_s: float | None = None
    hedge: bool = False
    lost: bool = False


_BROKEN = frozenset({OutcomeKind.CONNECT_FAILED, OutcomeKind.SERVER_ERROR, OutcomeKind.TIMEOUT})


def cause_of(attempts: Sequence[Attempt], last: OutcomeKind) -> OutcomeKind:
    """Say what a request failed of whose `last` attempt did: a key that is rejected in the end is no outage's cause."""
    if last is not OutcomeKind.AUTH_REJECTED:
        return last
    return next((each.kind for each in reversed(attempts) if each.kind in _BROKEN and each.kind is not None), last)


@value_type(frozen=True, slots=True)
class Failure:
    """Why the caller gets no provider answer.

    `kind` is the last attempt's outcome, the balancer's refusal, or "deadline". `RATE_LIMITED` without `status` means
    that the pool itself was full for longer than the caller may wait. `status` is the upstream's, if it answered.
    """

    kind: OutcomeKind | Refusal | Literal["deadline"]
    status: int | None = None
    retry_after_s: float | None = None
    last_attempt: Attempt | None = None


@value_type(frozen=True, slots=True)
class Send:
    """Send the request on `lease.endpoint`. After `Overdue` beside the earlier attempt, else in its place."""

    lease: Lease


BACKOFF = "backoff"
"""The reason of a pause between two tries that is not for want of capacity."""


@value_type(frozen=True, slots=True)
class Pause:
    """Wait until `until` (or an earlier sign of free capacity), then report `Woke`; `NotParked` if there is no room."""

    until: float
    reason: str = ""


@value_type(frozen=True, slots=True)
class Relay:
    """Hand the response of `lease` to the caller."""

    lease: Lease


@value_type(frozen=True, slots=True)
class Fail:
    """Tell the caller that it failed."""

    failure: Failure


@value_type(frozen=True, slots=True)
class Done:
    """Nothing is left to do."""


@value_type(frozen=True, slots=True)
class Await:
    """Go on waiting for the attempt that is still under way."""


Step = Send | Pause | Relay | Fail | Done | Await


@value_type(frozen=True, slots=True)
class Answered:
    """The response head has arrived; `first_byte_s` from the moment it was sent.

    `lease` says which of two attempts it is; None: the only one.
    """

    status: int
    kind: OutcomeKind = OutcomeKind.OK
    hint: Hint | None = None
    first_byte_s: float | None = None
    lease: Lease | None = None


@value_type(frozen=True, slots=True)
class Broke:
    """The attempt failed without an answer, or the answer was cut. `body_sent` None: sent unless connecting failed.

    `lease` as in `Answered`.
    """

    kind: OutcomeKind
    body_sent: bool | None = None
    lease: Lease | None = None


@value_type(frozen=True, slots=True)
class Overdue:
    """The moment `Exchange.overdue_at` has come and the attempt has no answer yet."""


@value_type(frozen=True, slots=True)
class ErrorInStream:
    """A stream with a good status carried an error event."""

    kind: OutcomeKind


@value_type(frozen=True, slots=True)
class Committed:
    """The first content went to the caller."""


@value_type(frozen=True, slots=True)
class Finished:
    """The response is over; a hint in `outcome` is dropped if the head's was learned already."""

    outcome: Outcome


@value_type(frozen=True, slots=True)
class Woke:
    """The pause is over."""


@value_type(frozen=True, slots=True)
class NotParked:
    """The queue had no room for the pause, or gave the place to someone else."""


@value_type(frozen=True, slots=True)
class CallerGone:
    """The caller disconnected; `usage` is what was produced until then, if known."""

    usage: TokenUsage | None = None


Event = Answered | Broke | ErrorInStream | Committed | Finished | Woke | NotParked | CallerGone | Overdue
