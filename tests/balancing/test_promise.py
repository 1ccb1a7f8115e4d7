"""What limits promise of how soon waiting requests are sent, and that a promise only ever shortens an estimate."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.admission import Admission, Joined, Ticket, TurnedAway
from gateway.balancing.balancer import Balancer
from gateway.balancing.charging import Dimension
from gateway.balancing.leased import QuotaLease
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.quota import Limits
from tests.balancing.pools import ASK, end, endpoint, pick, pool


def spent(*names: str, take: int = 60) -> Balancer:
    """Make a pool whose keys have all sent `take` requests."""
    made = pool(*(endpoint(name) for name in names), limits={f"q-{name}": Limits(rpm=60) for name in names})
    for _ in range(take * len(names)):
        end(made, pick(made))
    return made


@pytest.mark.parametrize(
    ("made", "ahead", "within_s"),
    [
        (spent("a", take=0), 0, 0.0),
        (spent("a", take=0), 59, 0.0),
        (spent("a", take=0), 69, 10.0),
        (spent("a"), 9, 10.0),
        (spent("a", "b"), 9, 5.0),
        (pool(endpoint("a")), 9, inf),
        (pool(), 9, inf),
    ],
    ids=["free", "just free", "ten more", "spent", "two keys", "no limit", "no keys"],
)
def test_what_is_promised(made: Balancer, ahead: int, within_s: float) -> None:
    assert made.within_s(ASK, ahead, 0.0) == pytest.approx(within_s, abs=1e-3)


def test_a_key_that_is_broken_or_cools_down_promises_nothing() -> None:
    made = spent("a", "b")
    end(made, pick(made, now=30.0), OutcomeKind.AUTH_REJECTED, now=30.0)
    assert made.within_s(ASK, 39, 30.0) == pytest.approx(10.0, abs=0.5)
    end(made, pick(made, now=30.0), OutcomeKind.RATE_LIMITED, now=30.0)
    assert made.within_s(ASK, 39, 30.0) == inf


def test_of_a_shared_quota_it_is_what_the_next_exchange_brings() -> None:
    made = spent("a", take=1)
    (state,) = made.endpoint_states()
    (ledger,) = state.quota.ledgers.values()
    lease = QuotaLease(lambda: None)
    ledger.share(lease)
    meter = lease.meters[Dimension.RPM][1]
    meter.balance = 0.0
    assert made.within_s(ASK, 9, 0.0) == pytest.approx(1.0), "nobody has said anything yet: it may be all of it"
    meter.free, meter.pace_per_s = 5.0, 0.5
    assert made.within_s(ASK, 9, 0.0) == pytest.approx(1.0 + 5.0 / 0.5)


@given(
    st.lists(st.floats(0.0, 20.0), max_size=8),
    st.integers(0, 20),
    st.floats(0.0, 60.0),
    st.one_of(st.just(inf), st.floats(0.0, 1e3)),
)
def test_a_promise_shortens_an_estimate_and_never_lengthens_it(
    gaps: list[float], ahead: int, patience_s: float, promised_s: float
) -> None:
    def queue() -> tuple[Admission, float]:
        made, now, number = Admission(), 0.0, 0
        for gap in gaps:
            made.join(Ticket(number, "a"), now)
            made.join(Ticket(number + 1, "a"), now)
            number, now = number + 2, now + gap
            made.next(now)
            made.served(now)
        return made, now

    (plain, now), (promised, _) = queue(), queue()
    ticket = Ticket(1000, "b", joined_at=now, deadline=now + patience_s)
    without, found = plain.join(ticket, now), promised.join(ticket, now, within_s=lambda _: promised_s)
    if isinstance(without, Joined):
        assert found == without
    elif isinstance(found, TurnedAway):
        assert found.retry_after_s == min(without.retry_after_s, promised_s)
    else:
        assert found.wait_s == promised_s <= patience_s + 1e-6
