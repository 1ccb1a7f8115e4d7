"""Quotas that turn out to be one: learned from names in headers, undone when the name changes."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.balancer import Balancer
from gateway.balancing.decision import Wait
from gateway.balancing.hints import Hint, WindowHint
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.quota import Limits
from gateway.balancing.sharing import MAX_NAMES, Named, SharedQuotas
from tests.balancing.pools import ASK, end, endpoint, pick, pool, serve


def test_the_first_quota_of_a_name_stands_for_the_others() -> None:
    shared = SharedQuotas()
    assert not shared.note("a", "openai", "acme", 1.0)
    assert shared.note("b", "openai", "acme", 1.0)
    assert not shared.note("b", "openai", "acme", 1.0)
    assert not shared.note("c", "anthropic", "acme", 1.0)
    assert [shared.stands_for(each) for each in "abc"] == ["a", "a", "c"]


def test_a_new_name_undoes_it() -> None:
    shared = SharedQuotas()
    shared.note("a", "openai", "acme", 1.0)
    shared.note("b", "openai", "acme", 1.0)
    assert shared.note("b", "openai", "other", 1.0)
    assert shared.stands_for("b") == "b"
    assert shared.names("b") == ("acme", "other")


def test_names_are_bounded_and_forgotten_with_their_quota() -> None:
    shared = SharedQuotas()
    for number in range(100):
        shared.note("a", "openai", f"made up {number}", 1.0)
    assert len(shared.names("a")) == MAX_NAMES
    shared.note("b", "openai", "acme", 1.0)
    shared.note("c", "openai", "acme", 1.0)
    shared.keep({"c"})
    assert shared.stands_for("c") == "c"
    assert shared.names("a") == ()


def answered(balancer: Balancer, name: str, organisation: str, remaining: int = 50) -> None:
    ask = replace(ASK, excluded=frozenset({"a", "b"}) - {name})
    hint = Hint(requests=WindowHint(60, remaining), quota_name=organisation)
    end(balancer, pick(balancer, ask), hint=hint)


def test_two_keys_of_one_organisation_become_one_bucket() -> None:
    balancer = pool(endpoint("a"), endpoint("b"), limits={"q-a": Limits(rpm=60), "q-b": Limits(rpm=60)})
    answered(balancer, "a", "acme")
    answered(balancer, "b", "acme", remaining=2)
    view = {quota.id: quota for quota in balancer.view(0.0).quotas}
    assert view["q-b"].counted_as == "q-a"
    assert view["q-a"].counted_as is None
    for _ in range(48):
        serve(balancer)
    # Counted apart there would be about sixty more.
    left = sum(1 for _ in range(20) if not isinstance(balancer.acquire(ASK, now=0.0), Wait))
    assert left <= 2
    balancer.reconfigure([endpoint("a"), endpoint("b")], [], balancer.strategy)
    assert isinstance(balancer.acquire(ASK, now=0.0), Wait)


def test_a_429_on_one_key_spares_the_other_of_the_same_organisation() -> None:
    balancer = pool(endpoint("a"), endpoint("b"))
    answered(balancer, "a", "acme")
    answered(balancer, "b", "acme")
    end(balancer, pick(balancer), OutcomeKind.RATE_LIMITED, hint=Hint(retry_after_s=4.0))
    assert balancer.acquire(ASK, now=0.0) == Wait(4.0, "cooling")


def test_leases_that_were_open_when_quotas_became_one_balance_out() -> None:
    balancer = pool(endpoint("a"), endpoint("b"))
    held = [pick(balancer) for _ in range(6)]
    answered(balancer, "a", "acme")
    answered(balancer, "b", "acme")
    for lease in held:
        end(balancer, lease)
    assert [quota.in_flight for quota in balancer.view(0.0).quotas] == [0, 0]


words = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.builds(Named, st.sampled_from([1.0, 2.0, 3.0]), st.just("openai"), st.sampled_from(["acme", "other"])),
    ),
    max_size=6,
)


@given(words, st.randoms(use_true_random=False))
def test_whoever_heard_the_same_words_counts_on_the_same_quotas(said: list[tuple[str, Named]], rng: Random) -> None:
    one, other = SharedQuotas(), SharedQuotas()
    for quota_id, word in said:
        one.hear(quota_id, word)
    again = [*said, *said]
    rng.shuffle(again)
    for quota_id, word in again:
        before = {each: other.stands_for(each) for each in "abcd"}
        changed = other.hear(quota_id, word)
        assert changed == {each for each in "abcd" if other.stands_for(each) != before[each]}
    assert [one.stands_for(each) for each in "abcd"] == [other.stands_for(each) for each in "abcd"]
    assert one.words == other.words


def test_what_is_answered_here_stands_until_a_later_word_is_heard() -> None:
    shared = SharedQuotas()
    shared.note("a", "openai", "acme", 5.0)
    assert not shared.hear("a", Named(4.0, "openai", "other"))
    shared.hear("a", Named(6.0, "openai", "other"))
    assert shared.names("a") == ("acme", "other")
    # A clock that is ahead does not outlast what is answered here.
    shared.note("a", "openai", "acme", 5.5)
    assert shared.words["a"] == Named(6.0, "openai", "acme")
