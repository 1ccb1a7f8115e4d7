"""A process's part of a quota: what is spent of it is what the provider counts, whatever was estimated."""

from __future__ import annotations

import pytest

from gateway.balancing.charging import Dimension
from gateway.balancing.leased import QuotaLease
from gateway.balancing.ledger import Ledger
from gateway.balancing.outcome import Outcome, OutcomeKind, TokenUsage
from gateway.balancing.quota import Limits
from gateway.balancing.semantics import semantics_of

TPM, RPM = Dimension.TPM, Dimension.RPM


def leased(provider: str, **limits: int) -> tuple[Ledger, QuotaLease]:
    account = Ledger(Limits(**limits), semantics_of(provider), 0.0)
    lease = QuotaLease(lambda: None)
    account.share(lease)
    return account, lease


def ok(inp: int, out: int) -> Outcome:
    return Outcome(OutcomeKind.OK, 200, usage=TokenUsage(inp, out))


@pytest.mark.parametrize(
    ("provider", "taken_at", "ended_at", "spent"),
    [
        ("groq", 0.0, 0.0, 400.0),
        # A sixth of the 200 that were not needed had come back by time.
        ("groq", 0.0, 10.0, 600.0 - 200.0 * 5 / 6),
        ("unheard-of", 0.0, 0.0, 400.0),
        # The output is held from its end on, so that it has not begun to come back.
        ("unheard-of", 0.0, 30.0, 600.0 - 500.0 / 2 + 300.0),
        ("mistral", 0.0, 0.0, 400.0),
        ("openai", 0.0, 0.0, 500.0),
        # A fixed minute: what was not needed is there until it ends, and concerns the next one no more.
        ("bedrock", 1.0, 59.0, 400.0),
        ("bedrock", 59.0, 61.0, 600.0),
    ],
)
def test_what_is_told_to_the_others_as_spent(provider: str, taken_at: float, ended_at: float, spent: float) -> None:
    account, lease = leased(provider, tpm=10_000)
    reservation = account.reserve(100, 500, taken_at)
    account.settle(reservation, ok(100, 300), ended_at)
    assert lease.meters[TPM][1].spent == pytest.approx(spent)


def test_a_stream_that_was_cut_off_has_spent_what_it_said() -> None:
    account, lease = leased("unheard-of", tpm=10_000)
    reservation = account.reserve(100, 500, 0.0)
    account.settle(reservation, Outcome(OutcomeKind.ABANDONED, 200, usage=TokenUsage(100, 20)), 0.0)
    assert lease.meters[TPM][1].spent == pytest.approx(120.0)


def test_an_account_that_replaces_another_is_not_held_by_limits_that_it_does_not_have() -> None:
    _, lease = leased("openai", rpm=100, tpm=10_000)
    Ledger(Limits(rpm=100), semantics_of("openai"), 0.0).share(lease)
    assert set(lease.meters) == {RPM}
    assert lease.ready_at((1.0, 9_000.0, 9_000.0, 9_000.0), 0.0) == 0.0
