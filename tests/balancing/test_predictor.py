"""What `predictive` learns of limiters: each belief from the evidence for it, and what sets beliefs aside."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.balancer import Balancer
from gateway.balancing.book import Beliefs, QuotaBook
from gateway.balancing.charging import Dimension, Reservation
from gateway.balancing.decision import Ask, Picked, Wait
from gateway.balancing.guard import FALLBACK_S, TRIAL_EVERY_S, TRIAL_S, Guard
from gateway.balancing.hints import NO_HINT, Hint, WindowHint
from gateway.balancing.ledger import Ledger
from gateway.balancing.limiter import FixedWindow
from gateway.balancing.outcome import Outcome, OutcomeKind, TokenUsage
from gateway.balancing.predictor import (
    LOWER_APART_S,
    LOWER_BY,
    MARGIN_CAP,
    MARGIN_STEP,
    MAX_AGE_S,
    PROBE_S,
    PROBES_APART,
    Identification,
    Learning,
)
from gateway.balancing.quota import Limits, Quota
from gateway.balancing.semantics import semantics_of
from gateway.balancing.strategies.predictive import Predictive
from gateway.balancing.strategies.registry import StrategyOptions, make_strategy
from tests.balancing.pools import end, endpoint, pick

RPM, TPM = Dimension.RPM, Dimension.TPM
CONFIGURED = {RPM: 100, TPM: 10_000}


def learning_ledger(provider: str, *, caps: bool = False, **limits: int) -> Ledger:
    account = Ledger(Limits(**limits), semantics_of(provider), 0.0)
    account.learn_limiter(Learning(limits_are_caps=caps), 0.0)
    return account


def one(*, proof: tuple[tuple[Dimension, float], ...] = (), trial: bool = False) -> Reservation:
    return Reservation(0.0, 10, 10, [], proof=proof, trial=trial)


def refuse(account: Ledger, now: float, hint: Hint | None = None) -> None:
    reservation = account.reserve(10, 10, now)
    if hint is not None:
        account.learn(reservation, hint, now)
    account.settle(reservation, Outcome(OutcomeKind.RATE_LIMITED, hint=hint), now)


def limit_of(account: Ledger, dimension: Dimension = RPM) -> float:
    meter = account.meter(dimension)
    assert meter is not None
    return meter.limit


def test_cold_start_is_plain_accounting() -> None:
    plain = Ledger(Limits(rpm=10), semantics_of("openai"), 0.0)
    learning = learning_ledger("openai", rpm=10)
    for step in range(30):
        now = step * 0.7
        assert plain.ready_at(10, 10, now) == learning.ready_at(10, 10, now)
        for account in (plain, learning):
            if account.ready_at(10, 10, now) <= now:
                account.settle(account.reserve(10, 10, now), Outcome(OutcomeKind.OK), now)


@pytest.mark.parametrize(("caps", "told", "enforced"), [(False, 200, 200), (True, 200, 100), (True, 50, 50)])
def test_the_providers_word_is_the_limit_unless_the_configured_one_is_a_cap(
    caps: bool, told: int, enforced: int
) -> None:
    account = learning_ledger("openai", caps=caps, rpm=100)
    account.learn(account.reserve(1, 1, 0.0), Hint(requests=WindowHint(told, told - 1)), 0.1)
    assert limit_of(account) == enforced


def test_the_margin_rises_with_429s_and_falls_with_successes() -> None:
    belief = Identification(Learning(), 0.0)
    for _ in range(20):
        belief.refused(one(), {}, CONFIGURED, 1.0)
    assert belief.margin == MARGIN_CAP
    for _ in range(400):
        belief.admitted(one(), CONFIGURED, 2.0)
    assert 0.0 < belief.margin < MARGIN_STEP * 3


def test_a_margin_holds_back_what_only_just_fits_save_in_a_trial() -> None:
    account = learning_ledger("openai", tpm=1000)
    refuse(account, 0.0, Hint(tokens=WindowHint(1000, 800), retry_after_s=0.05))
    account.settle(account.reserve(300, 1, 1.0), Outcome(OutcomeKind.OK), 1.0)
    free = account.meter(TPM)
    assert free is not None
    assert account.ready_at(free.available(2.0) / 1.02, 1, 2.0) > 2.0
    later = 1.0 + TRIAL_EVERY_S + 0.1
    account.reserve(700, 1, later)
    assert account.ready_at(free.available(later) / 1.02, 1, later) <= later
    over = later + TRIAL_S
    assert account.ready_at(free.available(over) / 1.02, 1, over) > over


def test_a_trial_counts_only_what_follows_once_the_account_was_emptied() -> None:
    """A trial's first requests live off what the margin had left: that they are admitted says nothing."""
    account = learning_ledger("openai", rpm=60)
    for _ in range(5):
        refuse(account, 0.0, Hint(requests=WindowHint(60, 5), retry_after_s=0.05))
    assert account.learner is not None
    account.settle(account.reserve(1, 1, 1.0), Outcome(OutcomeKind.OK), 1.0)
    meter = account.meter(RPM)
    assert meter is not None
    now = 1.0 + TRIAL_EVERY_S + 0.1
    meter.take(meter.available(now) - 2.5, now)
    assert [account.reserve(1, 1, now).trial for _ in range(2)] == [False, False]
    assert account.ready_at(1, 1, now) > now
    later = now + 0.6
    assert account.ready_at(1, 1, later) <= later
    assert account.reserve(1, 1, later).trial


@pytest.mark.parametrize("provider", ["gemini", "unheard-of"])
def test_a_margin_leaves_nothing_of_a_window_that_would_expire(provider: str) -> None:
    account = learning_ledger(provider, rpm=5)
    for _ in range(5):
        refuse(account, 0.0, Hint(retry_after_s=0.05))
    assert account.learner is not None
    assert account.learner.margin == MARGIN_CAP
    for _ in range(5):
        assert account.ready_at(1, 1, 61.0) <= 61.0
        account.reserve(1, 1, 61.0)
    assert account.ready_at(1, 1, 61.0) > 61.0


def trials(belief: Identification, *, without: float, held: float) -> float:
    """Let trials be refused at a rate of `without` and what the margin lets pass at one of `held`; gives the end."""
    rng, now = Random(3), 0.0
    belief.margin = MARGIN_CAP
    for step in range(4000):
        now = 10_000.0 + step
        belief.margin = MARGIN_CAP
        is_trial = step % 10 == 0
        share = without if is_trial else held
        (belief.refused if rng.random() < share else _admitted(belief))(one(trial=is_trial), {}, CONFIGURED, now)
        if not belief.in_use(now):
            break
    return now


def _admitted(belief: Identification) -> Callable[..., object]:
    return lambda reservation, _, configured, now: belief.admitted(reservation, configured, now)


def test_a_margin_that_buys_nothing_is_set_aside_with_what_others_are_believed_to_use() -> None:
    belief = Identification(Learning(), 0.0)
    belief.heard(RPM, 0.0, 100.0, 2.0, since=-1.0, now=9_000.0)
    at = trials(belief, without=0.06, held=0.06)
    assert not belief.in_use(at)
    assert belief.margin_at(at) == 0.0
    assert belief.heard(RPM, 50.0, 100.0, 2.0, since=-1.0, now=at) == 0.0
    assert belief.view(at).fallback_s == FALLBACK_S
    assert belief.in_use(at + FALLBACK_S)
    assert belief.heard(RPM, 50.0, 100.0, 2.0, since=-1.0, now=at + FALLBACK_S) > 0.0


def test_a_margin_that_spares_refusals_stays() -> None:
    belief = Identification(Learning(), 0.0)
    assert belief.in_use(trials(belief, without=0.09, held=0.01))


def test_a_refusal_ends_a_trial() -> None:
    guard = Guard()
    guard.plan(0.0)
    assert not guard.in_trial(TRIAL_EVERY_S - 0.1)
    assert guard.in_trial(TRIAL_EVERY_S)
    guard.count(refused=True, trial=True, margin=True, bold=False, now=TRIAL_EVERY_S + 1.0)
    assert not guard.in_trial(TRIAL_EVERY_S + 1.0)
    guard.plan(TRIAL_EVERY_S + 2.0)
    assert guard.in_trial(2 * TRIAL_EVERY_S + 2.0)


def test_a_margin_ends_with_the_learning() -> None:
    account = learning_ledger("openai", rpm=60)
    for _ in range(5):
        refuse(account, 0.0, Hint(requests=WindowHint(60, 60), retry_after_s=0.05))
    account.settle(account.reserve(1, 1, 99.0), Outcome(OutcomeKind.OK), 99.0)
    meter = account.meter(RPM)
    assert meter is not None
    meter.take(meter.available(99.0) - 1.5, 99.0)
    assert account.ready_at(1, 1, 99.0) > 99.0
    account.learn_limiter(None, 99.0)
    assert account.ready_at(1, 1, 99.0) <= 99.0


def test_limits_that_were_raised_and_then_refuse_are_taken_back() -> None:
    belief = Identification(Learning(), 0.0)
    for _ in range(20):
        belief.admitted(one(), CONFIGURED, 10.0)
    belief.admitted(one(proof=((RPM, 150.0),)), CONFIGURED, 70.0)
    assert belief.limit(RPM, 100, None, 1.0) == 150.0
    for step in range(60):
        belief.refused(one(), {}, CONFIGURED, 80.0 + step) if step % 3 else belief.admitted(
            one(), CONFIGURED, 80.0 + step
        )
    assert belief.limit(RPM, 100, None, 1.0) == 100.0
    assert not belief.in_use(140.0)


def test_two_unexplained_429s_lower_an_untold_limit_by_a_quarter_at_most() -> None:
    belief = Identification(Learning(), 0.0)
    belief.refused(one(), {RPM: 20.0}, CONFIGURED, 0.0)
    belief.refused(one(), {RPM: 20.0}, CONFIGURED, LOWER_APART_S / 2)
    assert belief.limit(RPM, 100, None, 1.0) == 100.0
    assert belief.refused(one(), {RPM: 20.0}, CONFIGURED, LOWER_APART_S)
    assert belief.limit(RPM, 100, None, 1.0) == 100.0 * LOWER_BY


@pytest.mark.parametrize(("used", "believed"), [(60, 1.0), (10, 90.0)])
def test_an_unexplained_429_near_a_limit_says_that_less_is_left_than_was_asked(used: int, believed: float) -> None:
    account = learning_ledger("gemini", rpm=100)
    for _ in range(used):
        account.settle(account.reserve(1, 1, 1.0), Outcome(OutcomeKind.OK), 1.0)
    refuse(account, 1.0)
    meter = account.meter(RPM)
    assert meter is not None
    assert meter.available(1.0) <= believed


def test_a_probe_waits_for_demand_and_a_window_then_raises_what_it_proves() -> None:
    balancer = Balancer(
        [endpoint("a", provider="gemini")],
        [Quota("q-a", Limits(rpm=3), "gemini")],
        Predictive(),
        rng=Random(1),
    )
    ask = Ask("gemini-2.5-flash", est_input_tokens=1, est_output_tokens=1)
    for _ in range(3):
        end(balancer, pick(balancer, ask, 1.0), now=1.0)
    assert isinstance(balancer.acquire(ask, now=2.0), Wait)
    now = PROBE_S + 1.0
    for _ in range(3):
        end(balancer, pick(balancer, ask, now), now=now)
    probe = balancer.acquire(ask, now=now + 1.0)
    assert isinstance(probe, Picked)
    assert probe.reason == "probe"
    assert isinstance(balancer.acquire(ask, now=now + 1.0), Wait)
    end(balancer, probe.lease, now=now + 1.5)
    (ledger,) = balancer.view(now).quotas[0].ledgers
    assert ledger.limits["rpm"][0] == 4.0
    assert ledger.belief is not None
    assert (ledger.belief.probes, ledger.belief.probes_refused) == (1, 0)
    again = balancer.acquire(ask, now=now + 2.0)
    assert isinstance(again, Picked)
    end(balancer, again.lease, OutcomeKind.RATE_LIMITED, now=now + 2.0)
    assert isinstance(balancer.acquire(ask, now=now + 10.0), Wait)
    assert balancer.view(now).quotas[0].ledgers[0].limits["rpm"][0] == 4.0


def test_an_answers_head_proves_a_probe_and_proofs_in_a_row_let_more_go_at_once() -> None:
    """At one probe an answer a limit that is twice the configured one would take minutes to be found."""
    balancer = Balancer(
        [endpoint("a", provider="bedrock")],
        [Quota("q-a", Limits(rpm=10), "bedrock")],
        Predictive(),
        rng=Random(1),
    )
    ask = Ask("nova", est_input_tokens=1, est_output_tokens=1)
    end(balancer, pick(balancer, ask, 0.0), now=0.0)
    now = PROBE_S + 1.0
    for _ in range(10):
        end(balancer, pick(balancer, ask, now), now=now)
    for step in range(PROBES_APART):
        lease = pick(balancer, ask, now)
        assert lease.probe
        assert isinstance(balancer.acquire(ask, now=now), Wait)
        balancer.learn(lease, NO_HINT, now=now)
        assert balancer.view(now).quotas[0].ledgers[0].limits["rpm"][0] == 11.0 + step
    first, second = pick(balancer, ask, now), pick(balancer, ask, now)
    assert isinstance(balancer.acquire(ask, now=now), Wait)
    # What was in use at the second counted the first in, which was refused.
    end(balancer, first, OutcomeKind.RATE_LIMITED, now=now + 0.1)
    balancer.learn(second, NO_HINT, now=now + 0.2)
    assert balancer.view(now).quotas[0].ledgers[0].limits["rpm"][0] == 10.0 + PROBES_APART


@pytest.mark.parametrize(
    ("provider", "plain", "learning"),
    [("bedrock", -1.0, 0.0), ("unheard-of", -1.0, 0.0), ("openai", -1.0, -1.0), ("gemini", 0.0, 0.0)],
)
def test_a_refused_request_costs_one_where_the_provider_says_so_or_nothing_is_learned(
    provider: str, plain: float, learning: float
) -> None:
    for learns, left in ((False, plain), (True, learning)):
        account = learning_ledger(provider, rpm=2) if learns else Ledger(Limits(rpm=2), semantics_of(provider), 0.0)
        for _ in range(2):
            account.settle(account.reserve(1, 1, 1.0), Outcome(OutcomeKind.OK), 1.0)
        account.settle(account.reserve(1, 1, 1.0), Outcome(OutcomeKind.RATE_LIMITED), 1.0)
        meter = account.meter(RPM)
        assert meter is not None
        assert meter.available(1.0) == left


def test_caps_are_never_probed() -> None:
    balancer = Balancer(
        [endpoint("a", provider="gemini")],
        [Quota("q-a", Limits(rpm=1), "gemini")],
        make_strategy("predictive", StrategyOptions(limits_are_caps=True)),
        rng=Random(1),
    )
    ask = Ask("gemini-2.5-flash", est_input_tokens=1, est_output_tokens=1)
    now = 2 * PROBE_S + 1.0
    end(balancer, pick(balancer, ask, now), now=now)
    assert isinstance(balancer.acquire(ask, now=now + 1.0), Wait)


def test_others_are_seen_in_remainders_and_slow_the_refill() -> None:
    """60 a minute refill by one a second, others take half of it: remainders fall short by 0.5 a second."""
    account = learning_ledger("openai", rpm=60)
    remaining, now = 30.0, 0.0
    for _ in range(60):
        now += 1.0
        remaining += 1.0 - 0.5 - 1.0
        reservation = account.reserve(1, 1, now)
        account.learn(reservation, Hint(requests=WindowHint(60, max(0, round(remaining)))), now)
        account.settle(reservation, Outcome(OutcomeKind.OK), now)
    assert account.learner is not None
    assert account.learner.view(now).outside_per_s["rpm"] == pytest.approx(0.5, abs=0.15)
    meter = account.meter(RPM)
    assert meter is not None
    assert meter.earliest(meter.available(now) + 1.0, now) - now == pytest.approx(2.0, rel=0.4)


def test_a_fixed_windows_phase_and_limit_are_seen_in_azures_remainders() -> None:
    """Ten-second windows of 12 from t = 3, configured as 24: the remainder rises only when one begins."""
    account = learning_ledger("azure", rpm=144)
    used, index = 0, 0
    for now in range(4, 90):
        if (now - 3) // 10 != index:
            used, index = 0, (now - 3) // 10
        used += 1
        reservation = account.reserve(1, 1, now)
        account.learn(reservation, Hint(requests=WindowHint(None, 12 - used)), now)
        account.settle(reservation, Outcome(OutcomeKind.OK), now)
    meter = account.meter(RPM)
    assert isinstance(meter, FixedWindow)
    assert meter.limit == pytest.approx(12.0)
    assert meter.spent(93.0) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("provider", ["azure", "openai", "other"])
@pytest.mark.parametrize("told", ["requests", "tokens"])
@pytest.mark.parametrize(
    ("kind", "left"), [(OutcomeKind.RATE_LIMITED, 0), (OutcomeKind.RATE_LIMITED, 2), (OutcomeKind.OK, 0)]
)
def test_windows_that_others_had_spent_do_not_shut_a_quota(
    provider: str, told: str, kind: OutcomeKind, left: int
) -> None:
    account = learning_ledger(provider, rpm=60, tpm=5_000)
    size = 0 if kind is OutcomeKind.OK and told == "tokens" else 10
    for minute in range(12):
        now = minute * 61.0
        account.ready_at(size, size, now)
        reservation = account.reserve(size, size, now)
        hint = Hint(5.0 if kind is OutcomeKind.RATE_LIMITED else None, **{told: WindowHint(None, left)})  # type: ignore[arg-type]
        account.learn(reservation, hint, now)
        account.settle(reservation, Outcome(kind, hint=hint), now)
    assert account.ready_at(size, size, 3_600.0) <= 3_600.0
    assert all(meter.limit >= 1.0 for _, meter in account.meters())


@pytest.mark.parametrize(
    ("remaining", "delay_s", "dimension"), [((0, 9_000), 4.0, RPM), ((3, 0), 4.0, TPM), ((3, 0), 40.0, TPM)]
)
def test_a_refusal_names_the_end_of_the_spent_window(
    remaining: tuple[int, int], delay_s: float, dimension: Dimension
) -> None:
    account = learning_ledger("azure", rpm=60, tpm=10_000)
    requests, tokens = remaining
    hint = Hint(delay_s, requests=WindowHint(None, requests), tokens=WindowHint(None, tokens))
    refuse(account, 100.0, hint)
    assert account.learner is not None
    assert account.learner.phases == {dimension: 100.0 + delay_s}
    assert isinstance(account.meter(dimension), FixedWindow)


def test_switching_away_keeps_what_was_learned_but_does_not_use_it() -> None:
    balancer = Balancer(
        [endpoint("a", provider="openai")], [Quota("q-a", Limits(rpm=100), "openai")], Predictive(), rng=Random(1)
    )
    ask = Ask("gpt-4o", est_input_tokens=1, est_output_tokens=1)
    lease = pick(balancer, ask, 0.0)
    balancer.learn(lease, Hint(requests=WindowHint(200, 199)), now=0.1)
    end(balancer, lease, now=0.2)
    assert balancer.view(0.2).quotas[0].ledgers[0].limits["rpm"][0] == 200.0
    rest = ([endpoint("a", provider="openai")], [Quota("q-a", Limits(rpm=100), "openai")])
    balancer.reconfigure(*rest, make_strategy("rate_limit_aware"))
    assert balancer.view(0.2).quotas[0].ledgers[0].limits["rpm"][0] == 100.0
    balancer.reconfigure(*rest, make_strategy("predictive+cache_affinity"))
    pick(balancer, ask, 0.3)
    assert balancer.view(0.3).quotas[0].ledgers[0].limits["rpm"][0] == 200.0


def test_beliefs_outlive_a_restart_at_half_their_weight() -> None:
    def make(offset_s: float, saved: Beliefs) -> tuple[Balancer, QuotaBook]:
        book = QuotaBook()
        book.recall(saved)
        balancer = Balancer(
            [endpoint("a", provider="gemini")],
            [Quota("q-a", Limits(rpm=100), "gemini")],
            Predictive(),
            rng=Random(1),
            unix_offset_s=offset_s,
            book=book,
        )
        return balancer, book

    ask = Ask("gemini-2.5-flash", est_input_tokens=1, est_output_tokens=1)
    before, book = make(1000.0, {})
    for now in (1.0, 61.0):
        lease = pick(before, ask, now)
        end(before, lease, OutcomeKind.RATE_LIMITED, now)
    saved = json.loads(json.dumps(book.beliefs(70.0)))
    after, _ = make(1000.0 - 30.0, saved)
    pick(after, ask, 100.0)
    told = before.view(70.0).quotas[0].ledgers[0].belief
    kept = after.view(100.0).quotas[0].ledgers[0].belief
    assert told is not None
    assert kept is not None
    assert kept.factors == told.factors != {}
    assert kept.margin == pytest.approx(told.margin / 2)
    stale, _ = make(1000.0 + MAX_AGE_S, saved)
    pick(stale, ask, 100.0)
    forgotten = stale.view(100.0).quotas[0].ledgers[0].belief
    assert forgotten is not None
    assert forgotten.factors == {}


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.just(10**400) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("rpm", "tpm", "x")), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(("at", "margin", "phases", "factors", "outside", "seen", "told")), _JSON))
def test_no_saved_state_breaks_a_start(saved: dict[str, object]) -> None:
    account = Ledger(Limits(rpm=100), semantics_of("azure"), 10.0, unix_offset_s=1000.0)
    account.learn_limiter(Learning(), 10.0)
    account.restore({"at": 1000.0, **saved}, 10.0)
    assert account.learner is not None
    assert 0.0 <= account.learner.margin <= MARGIN_CAP
    assert limit_of(account) >= 1.0
    assert account.reserve(1, 1, 10.0).entries


def test_a_limit_that_was_told_or_seen_is_known_after_a_restart() -> None:
    hints = (Hint(requests=WindowHint(None, 9), tokens=WindowHint(40_000, 39_000)),)
    before = learning_ledger("azure", rpm=120, tpm=10_000)
    for step in range(40):
        reservation = before.reserve(1, 1, step * 1.0)
        before.learn(reservation, hints[0], step * 1.0)
        before.settle(reservation, Outcome(OutcomeKind.OK), step * 1.0)
    after = learning_ledger("azure", rpm=120, tpm=10_000)
    after.restore(json.loads(json.dumps(before.export(40.0))), 41.0)
    assert after.told == {TPM: 40_000}
    assert limit_of(after) == limit_of(before) == 10.0
    plain = Ledger(Limits(tpm=50_000), semantics_of("azure"), 0.0)
    plain.restore(before.export(40.0) or {}, 41.0)
    assert plain.misconfigured() == {"tpm": (50_000, 40_000)}


def test_a_margin_keeps_more_free_where_that_costs_no_throughput() -> None:
    waits = {}
    for provider, size in (("openai", 100), ("bedrock", 100)):
        account = learning_ledger(provider, tpm=6000)
        assert account.learner is not None
        account.learner.refused(one(), {}, CONFIGURED, 0.0)
        meter = account.meter(TPM)
        assert meter is not None
        meter.take(meter.available(1.0) - 1.2 * size, 1.0)
        waits[provider] = account.ready_at(size, 1, 1.0) > 1.0
    assert waits == {"openai": True, "bedrock": False}


def test_a_refusal_in_a_burst_is_put_down_to_what_went_before_it() -> None:
    account = learning_ledger("gemini", rpm=40)
    for began in (0.0, 60.0):
        burst = [account.reserve(1, 1, began) for _ in range(40)]
        for reservation in burst[26:]:
            account.settle(reservation, Outcome(OutcomeKind.RATE_LIMITED), began + 0.2)
        for reservation in burst[:26]:
            account.settle(reservation, Outcome(OutcomeKind.OK), began + 1.0)
    # 26 were taken each time; one step lowers by a quarter at most.
    assert limit_of(account) == 30.0


def test_answers_that_are_not_counted_yet_prove_nothing() -> None:
    account = learning_ledger("unheard-of", tpm=1000)
    now = PROBE_S + 1.0
    held = account.reserve(10, 900, now)
    assert account.may_probe(20, 500, now)
    probe = account.reserve(20, 500, now, probe=True)
    assert probe.proof == ((TPM, 30.0),)
    account.settle(probe, Outcome(OutcomeKind.OK), now + 1.0)
    account.settle(held, Outcome(OutcomeKind.OK), now + 1.0)
    assert limit_of(account, TPM) == 1000.0


def test_an_answer_is_held_until_a_window_after_its_end() -> None:
    account = Ledger(Limits(tpm=1000), semantics_of("unheard-of"), 0.0)
    reservation = account.reserve(100, 500, 0.0)
    account.settle(reservation, Outcome(OutcomeKind.OK, usage=TokenUsage(100, 400)), 30.0)
    meter = account.meter(TPM)
    assert meter is not None
    assert meter.available(31.0) == 500.0
    assert meter.available(64.0) == 600.0
    assert meter.available(94.0) == 1000.0


def test_a_limiter_that_refuses_is_asked_less_until_it_was_silent_for_long() -> None:
    balancer = Balancer(
        [endpoint("a", provider="anthropic"), endpoint("b", provider="anthropic")],
        [Quota(f"q-{name}", Limits(rpm=600), "anthropic") for name in "ab"],
        Predictive(),
        rng=Random(1),
    )
    ask = Ask("claude", est_input_tokens=1, est_output_tokens=1)
    for step in range(40):
        lease = pick(balancer, ask, step * 1.0)
        refused = lease.endpoint.id == "a"
        hint = Hint(retry_after_s=0.05) if refused else None
        end(balancer, lease, OutcomeKind.RATE_LIMITED if refused else OutcomeKind.OK, step * 1.0, hint)
    asked = {view.id: view.picks for view in balancer.view(40.0).endpoints}
    assert asked["a"] < 10 < asked["b"]
    learner = next(iter(balancer.view(40.0).quotas)).ledgers[0]
    assert learner.belief is not None
