"""Quotas that turn out to be one: learned from names in headers, undone when the name changes."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.balancer import Balancer
from gateway.balancing.book import QuotaBook
from gateway.balancing.decision import Wait
from gateway.balancing.hints import Hint, WindowHint
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.quota import Limits, Quota
from gateway.balancing.sharing import MAX_NAMES, Named, SharedQuotas
from gateway.balancing.strategies.registry import make_strategy
from tests.balancing.pools import ASK, end, endpoint, pick, pool


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
    # The latest answer said two; counted apart there would be fifty more.
    left = sum(1 for _ in range(60) if not isinstance(balancer.acquire(ASK, now=0.0), Wait))
    assert left == 2
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
    assert [quota.in_flight for quota in balancer.view(0.0).quotas] == [6, 0], "all count where the limit does"
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


def test_what_was_spent_is_not_forgotten_when_another_quota_begins_to_count() -> None:
    """The one that was heard of first has the larger id: what is known of it goes over."""
    balancer = pool(endpoint("a"), endpoint("b"), limits={"q-a": Limits(rpm=60), "q-b": Limits(rpm=60)})
    only_b = replace(ASK, excluded=frozenset({"a"}))
    end(balancer, pick(balancer, only_b), hint=Hint(requests=WindowHint(60, 4), quota_name="acme"))
    end(balancer, pick(balancer, replace(ASK, excluded=frozenset({"b"}))), hint=Hint(quota_name="acme"))
    (a, b) = balancer.view(0.0).quotas
    assert (a.counted_as, b.counted_as) == (None, "q-a")
    assert a.ledgers[0].limits["rpm"] == (60.0, 4.0)


def restarted(quotas: list[Quota], saved: QuotaBook, *, apart: bool) -> list[Balancer]:
    book = QuotaBook()
    book.recall(saved.beliefs(10.0))
    keys = [endpoint("b", quota_id="q-b"), endpoint("a", quota_id="q-a")]
    groups = [[each] for each in keys] if apart else [keys]
    return [Balancer(each, quotas, make_strategy("weighted"), rng=Random(1), now=10.0, book=book) for each in groups]


def test_what_is_one_is_one_from_the_start_after_a_restart() -> None:
    quotas = [Quota("q-a", Limits(rpm=5), "simulated"), Quota("q-b", Limits(rpm=5), "simulated")]
    before = QuotaBook()
    first = Balancer([endpoint("a"), endpoint("b")], quotas, make_strategy("weighted"), rng=Random(1), book=before)
    for name in ("a", "b"):
        end(first, pick(first, replace(ASK, excluded=frozenset("ab") - {name})), hint=Hint(quota_name="acme"))
    for apart in (False, True):
        balancers = restarted(quotas, before, apart=apart)
        views = {each.id: each.counted_as for balancer in balancers for each in balancer.view(10.0).quotas}
        assert views == {"q-a": None, "q-b": "q-a"}
        admitted = 0
        for balancer in balancers:
            while not isinstance(balancer.acquire(ASK, now=10.0), Wait):
                admitted += 1
        assert admitted == 5


def test_no_saved_name_breaks_a_start() -> None:
    for name in (None, 3, [], ["openai"], ["openai", 4], {"a": 1}, ["o", "n", "e"], [nan, "o", "n"], [1.0, "o", 2]):
        book = QuotaBook()
        book.recall({"q-a": {"": {"at": 10.0, "name": name}}})
        balancer = Balancer([endpoint("a")], [], make_strategy("weighted"), rng=Random(1), now=10.0, book=book)
        assert balancer.view(10.0).quotas[0].known_as == ()


def test_when_what_counted_is_gone_its_companions_count_together() -> None:
    book, quotas = QuotaBook(), [Quota(f"q-{each}", Limits(rpm=5), "simulated") for each in "abc"]
    pools = [Balancer([endpoint(each)], quotas, make_strategy("weighted"), rng=Random(1), book=book) for each in "abc"]
    for each in pools:
        end(each, pick(each), hint=Hint(quota_name="acme"))
    pools[0].close()
    assert [each.view(0.0).quotas[0].counted_as for each in pools[1:]] == [None, "q-b"]
    lease = pick(pools[2])
    assert pools[1].view(0.0).quotas[0].in_flight == 1
    end(pools[2], lease)
