"""Limits and requests in flight of one model family: declared, learned, counted to the end, bounded in number."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.balancer import Balancer
from gateway.balancing.book import UNSHARED, QuotaBook
from gateway.balancing.concurrency import GUESS_HOLDS_S, TOLD_HOLDS_S, Concurrency
from gateway.balancing.decision import Ask, Picked, Wait
from gateway.balancing.families import MAX_FAMILIES, family_of
from gateway.balancing.hints import Hint, WindowHint
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.quota import Limits, Quota
from gateway.balancing.semantics import semantics_of
from gateway.balancing.strategies.registry import make_strategy
from tests.balancing.pools import ASK, end, endpoint, pick, serve

DECLARED = {
    "gpt-4o": Limits(rpm=1),
    "gpt-4o-mini": Limits(rpm=2),
    "claude-opus-4*": Limits(rpm=3),
    "claude-opus-4-8*": Limits(rpm=4),
}


def pooled(quota: Quota, keys: int = 1, provider: str = "openai") -> Balancer:
    endpoints = [endpoint(f"k{number}", quota_id=quota.id, provider=provider) for number in range(keys)]
    return Balancer(endpoints, [quota], make_strategy("rate_limit_aware"), rng=Random(1))


def of(model: str) -> Ask:
    return replace(ASK, model=model)


def admitted(balancer: Balancer, ask: Ask, now: float = 0.0) -> int:
    count = 0
    while isinstance(decision := balancer.acquire(ask, now=now), Picked) and count < 1_000:
        count += 1
    assert isinstance(decision, Wait)
    return count


@pytest.mark.parametrize(
    ("model", "provider", "family"),
    [
        ("gpt-4o", "openai", "gpt-4o"),
        ("gpt-4o-2024-08-06", "openai", "gpt-4o"),
        ("gpt-4o-mini-2024-07-18", "openai", "gpt-4o-mini"),
        ("gpt-4.1", "openai", "gpt-4.1"),
        ("claude-opus-4-1-20250805", "anthropic", "claude-opus-4*"),
        ("claude-opus-4-8-20260101", "anthropic", "claude-opus-4-8*"),
        ("gpt-4o", "vllm", "gpt-4o"),
        ("another", "vllm", ""),
    ],
)
def test_the_declared_family_that_fits_best_counts(model: str, provider: str, family: str) -> None:
    assert family_of(Quota("q", provider=provider, families=DECLARED), model, semantics_of(provider)) == family


def test_a_family_has_the_limits_of_its_own_and_the_common_ones_that_it_leaves_out() -> None:
    quota = Quota("q", Limits(rpm=10, tpm=900, concurrency=7), "openai", {"big": Limits(rpm=2, concurrency=1)})
    assert quota.limits_of("big") == Limits(rpm=2, tpm=900, concurrency=1)
    assert quota.limits_of("other") == Limits(rpm=10, tpm=900)


@pytest.mark.parametrize("dimension", ["rpm", "tpm", "itpm", "otpm", "rpd", "tpd", "concurrency"])
@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini", "mistral", "groq", "bedrock", "vllm"])
def test_every_limit_can_be_declared_for_one_family(dimension: str, provider: str) -> None:
    of_one = 1 if dimension in ("rpm", "rpd", "concurrency") else 100
    quota = Quota("q", Limits(), provider, {"small": Limits(**{dimension: of_one * 3})})
    balancer = Balancer(
        [endpoint("k", quota_id="q", provider=provider)], [quota], make_strategy("rate_limit_aware"), rng=Random(1)
    )
    small = Ask("small", est_input_tokens=100, est_output_tokens=100)
    assert 1 <= admitted(balancer, small) <= 3
    for _ in range(20):
        pick(balancer, replace(small, model="large"))


def test_requests_in_flight_are_counted_by_family_and_in_all() -> None:
    balancer = pooled(Quota("q", Limits(concurrency=5), "openai", {"big": Limits(concurrency=2)}))
    assert admitted(balancer, of("big")) == 2
    assert admitted(balancer, of("small")) == 3


def test_what_is_in_flight_outlives_any_number_of_made_up_models() -> None:
    quota = Quota("q", Limits(rpm=10**6), "openai", {"big": Limits(concurrency=2)})
    balancer = pooled(quota)
    running = [pick(balancer, of("big")), pick(balancer, of("big"))]
    other = pick(balancer, of("gpt-4.1"))
    for number in range(5 * MAX_FAMILIES):
        serve(balancer, of(f"made up {number}"), now=float(number), kind=OutcomeKind.CLIENT_ERROR)
    (view,) = balancer.view(400.0).quotas
    assert len(view.ledgers) <= MAX_FAMILIES
    assert {each.family: each.in_flight for each in view.ledgers if each.in_flight} == {"big": 2, "gpt-4.1": 1}
    assert isinstance(balancer.acquire(of("big"), now=400.0), Wait)
    for lease in running:
        end(balancer, lease, now=400.0)
    end(balancer, other, now=400.0)
    assert admitted(balancer, of("big"), now=400.0) == 2


def test_made_up_models_do_not_make_a_real_account_begin_anew() -> None:
    balancer = pooled(Quota("q", Limits(rpm=10), "openai"))
    for _ in range(10):
        serve(balancer, of("gpt-4o"))
    assert isinstance(balancer.acquire(of("gpt-4o"), now=0.0), Wait)
    for number in range(3 * MAX_FAMILIES):
        serve(balancer, of(f"made up {number}"), now=0.001 * number, kind=OutcomeKind.CLIENT_ERROR)
    assert isinstance(balancer.acquire(of("gpt-4o"), now=0.5), Wait)


def test_all_families_in_flight_may_be_more_than_are_remembered_idle() -> None:
    balancer = pooled(Quota("q", Limits(), "openai"))
    leases = [pick(balancer, of(f"m{number}x")) for number in range(MAX_FAMILIES + 20)]
    (view,) = balancer.view(0.0).quotas
    assert sum(each.in_flight for each in view.ledgers) == len(leases)
    for lease in leases:
        end(balancer, lease)
    serve(balancer, of("another"))
    (view,) = balancer.view(0.0).quotas
    assert len(view.ledgers) <= MAX_FAMILIES


def refuse(balancer: Balancer, model: str, limit: int | None, now: float = 0.0) -> None:
    hint = Hint(in_flight=WindowHint(limit, 0))
    lease = pick(balancer, of(model), now)
    balancer.observe(lease, Outcome(OutcomeKind.RATE_LIMITED, 429, hint=hint, total_s=0.1), now=now)


def test_a_cap_that_the_provider_names_holds_for_the_family_and_is_reported() -> None:
    balancer = pooled(Quota("q", Limits(), "openai", {"big": Limits(concurrency=9)}))
    refuse(balancer, "big", 3)
    (view,) = balancer.view(10.0).quotas
    (ledger,) = view.ledgers
    assert (ledger.limits["concurrency"], ledger.sources["concurrency"]) == ((3.0, 3.0), "provider")
    assert ledger.misconfigured == {"concurrency": (9, 3)}
    assert admitted(balancer, of("big"), now=10.0) == 3
    assert isinstance(balancer.acquire(of("small"), now=10.0), Picked)


def test_a_cap_of_all_models_that_the_provider_contradicts_is_reported_too() -> None:
    balancer = pooled(Quota("q", Limits(concurrency=9), "vllm"), provider="vllm")
    refuse(balancer, "big", 3)
    (ledger,) = balancer.view(10.0).quotas[0].ledgers
    assert ledger.misconfigured == {"concurrency": (9, 3)}
    assert admitted(balancer, of("small"), now=10.0) == 3


def test_a_cap_that_nobody_names_is_found() -> None:
    """A provider that admits five at a time, of twelve that come in one burst."""
    balancer = pooled(Quota("q", Limits(), "anthropic"), provider="anthropic")
    leases = [pick(balancer, of("m")) for _ in range(12)]
    hint = Hint(in_flight=WindowHint(None, 0))
    for lease in leases[5:]:
        balancer.observe(lease, Outcome(OutcomeKind.RATE_LIMITED, 429, hint=hint, total_s=0.1), now=0.1)
    for lease in leases[:5]:
        end(balancer, lease, now=3.0)
    assert admitted(balancer, of("m"), now=3.0) == 5
    assert balancer.view(3.0).quotas[0].ledgers[0].sources["concurrency"] == "learned"


def test_a_wrong_belief_ends_by_itself() -> None:
    running = Concurrency()
    for limit, holds_s in ((None, GUESS_HOLDS_S), (2, TOLD_HOLDS_S)):
        running = Concurrency()
        running.in_flight = 3
        running.refused(limit, 0.0)
        running.in_flight = 1
        assert running.slots == 2
        running.ended(holds_s - 1.0)
        assert running.slots == 2
        running.ended(holds_s)
        assert running.slots == 3
    running.configure(3)
    running.in_flight = 2
    running.ended(3 * TOLD_HOLDS_S)
    assert running.slots == 3, "never above what is configured"


@pytest.mark.parametrize("limit", [0, -1, 10**12])
def test_a_cap_that_cannot_be_one_is_as_if_it_were_not_named(limit: int) -> None:
    running = Concurrency()
    running.in_flight = 4
    running.refused(limit, 0.0)
    assert (running.told, running.slots) == (None, 3)


def test_what_was_named_is_known_after_a_restart() -> None:
    before, after = QuotaBook(), QuotaBook()
    quota = Quota("q", Limits(), "openai")
    balancers = []
    for book in (before, after):
        if book is after:
            book.recall(before.beliefs(10.0))
        key = endpoint("k", quota_id="q", provider="openai")
        balancers.append(Balancer([key], [quota], make_strategy("weighted"), rng=Random(1), now=10.0, book=book))
        if book is before:
            refuse(balancers[0], "big", 3, now=10.0)
    assert admitted(balancers[1], of("big"), now=11.0) == 3


def test_a_family_that_is_declared_later_keeps_what_is_in_flight() -> None:
    balancer = pooled(Quota("q", Limits(), "openai"))
    lease = pick(balancer, of("big"))
    key = endpoint("k0", quota_id="q", provider="openai")
    declared = Quota("q", Limits(), "openai", {"big": Limits(concurrency=2), "other*": Limits(rpm=1)})
    balancer.reconfigure([key], [declared], balancer.strategy)
    assert admitted(balancer, of("big")) == 1
    serve(balancer, of("other-1"))
    balancer.reconfigure([key], [replace(declared, families={})], balancer.strategy)
    assert [(each.family, each.in_flight) for each in balancer.view(0.0).quotas[0].ledgers] == [("big", 2)]
    end(balancer, lease)
    assert balancer.view(0.0).quotas[0].ledgers[0].in_flight == 1


def test_a_process_of_several_begins_with_a_part_of_a_familys_cap() -> None:
    running = Concurrency()
    running.configure(32)
    running.share(UNSHARED)
    assert running.slots == 2
    running.grant(20)
    assert running.slots == 20
    running.configure(8)
    assert running.slots == 0, "what was granted was granted of another cap"


CAPS = st.none() | st.integers(1, 6)


@given(
    st.fixed_dictionaries({"a": CAPS, "b": CAPS, "": CAPS}),
    st.lists(
        st.tuples(st.sampled_from(["start", "good", "refused", "named"]), st.sampled_from("abc"), st.integers(0, 90)),
        max_size=60,
    ),
)
def test_in_flight_is_never_above_a_declared_cap_and_always_settles(
    caps: dict[str, int | None], steps: list[tuple[str, str, int]]
) -> None:
    families = {name: Limits(concurrency=caps[name]) for name in "ab"}
    balancer = pooled(Quota("q", Limits(concurrency=caps[""]), "openai", families), keys=2)
    running: dict[str, list[object]] = {"a": [], "b": [], "c": []}
    now = 0.0
    for what, model, amount in steps:
        now += amount
        if what == "start":
            decision = balancer.acquire(of(model), now=now)
            if isinstance(decision, Picked):
                running[model].append(decision.lease)
        elif running[model]:
            kind = OutcomeKind.OK if what == "good" else OutcomeKind.RATE_LIMITED
            told = WindowHint(1 + amount % 4 if what == "named" else None, 0)
            hint = None if what == "good" else Hint(in_flight=told)
            lease = running[model].pop()
            balancer.observe(lease, Outcome(kind, hint=hint, total_s=0.1), now=now)  # type: ignore[arg-type]
        for name, leases in running.items():
            cap = caps.get(name)
            assert cap is None or len(leases) <= cap
        assert caps[""] is None or sum(map(len, running.values())) <= caps[""]
    for leases in running.values():
        for lease in leases:
            balancer.observe(lease, Outcome(OutcomeKind.OK, total_s=0.1), now=now)  # type: ignore[arg-type]
    (view,) = balancer.view(now).quotas
    assert (view.in_flight, [each.in_flight for each in view.ledgers if each.in_flight]) == (0, [])
