"""Pools of one tenant on common quotas: one bucket, one wake-up, one name."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from gateway.balancing.balancer import Balancer
from gateway.balancing.book import QuotaBook
from gateway.balancing.decision import Picked, Wait
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.families import MAX_FAMILIES
from gateway.balancing.hints import Hint
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.quota import Limits, Quota
from gateway.balancing.strategies.registry import make_strategy
from tests.balancing.pools import ASK, end, endpoint, pick

ORGANISATION = Quota("q", Limits(rpm=10), "simulated")


class Pool:
    """A balancer that counts how often its queue was woken."""

    def __init__(self, book: QuotaBook, *endpoints: Endpoint, quotas: tuple[Quota, ...] = (ORGANISATION,)) -> None:
        self.woken = 0
        self.balancer = Balancer(
            endpoints, quotas, make_strategy("round_robin"), rng=Random(1), on_freed=self.wake, book=book
        )

    def wake(self) -> None:
        self.woken += 1

    def served(self, now: float = 0.0) -> int:
        """Give how many requests can be sent at once."""
        count = 0
        while isinstance(decision := self.balancer.acquire(ASK, now=now), Picked):
            end(self.balancer, decision.lease, now=now)
            count += 1
        assert isinstance(decision, Wait)
        return count


def test_a_quota_is_one_bucket_for_all_pools() -> None:
    book = QuotaBook()
    first, second = Pool(book, endpoint("a", quota_id="q")), Pool(book, endpoint("b", quota_id="q"))
    for _ in range(6):
        end(first.balancer, pick(first.balancer))
    assert second.served() == 4
    assert first.served() == 0


def test_pools_without_a_book_in_common_know_nothing_of_each_other() -> None:
    first, second = (Pool(QuotaBook(), endpoint(name, quota_id="q")) for name in "ab")
    assert first.served() == second.served() == 10


def test_what_one_pool_frees_wakes_the_others_on_the_quota_only() -> None:
    book = QuotaBook()
    first, second = Pool(book, endpoint("a", quota_id="q")), Pool(book, endpoint("b", quota_id="q"))
    stranger = Pool(book, endpoint("c", quota_id="other"))
    lease = pick(first.balancer)
    before = second.woken, stranger.woken
    end(first.balancer, lease)
    assert (second.woken, stranger.woken) == (before[0] + 1, before[1])


def test_a_full_answer_is_not_remembered_past_what_another_pool_frees() -> None:
    book, quota = QuotaBook(), Quota("q", Limits(concurrency=1), "simulated")
    first, second = (Pool(book, endpoint(name, quota_id="q"), quotas=(quota,)) for name in "ab")
    lease = pick(first.balancer)
    assert isinstance(second.balancer.acquire(ASK, now=0.0), Wait)
    end(first.balancer, lease)
    assert isinstance(second.balancer.acquire(ASK, now=0.0), Picked)


def test_quotas_of_two_pools_that_headers_show_to_be_one_are_one() -> None:
    book = QuotaBook()
    quotas = Quota("q-a", Limits(rpm=10), "simulated"), Quota("q-b", Limits(rpm=10), "simulated")
    first, second = Pool(book, endpoint("a"), quotas=quotas), Pool(book, endpoint("b"), quotas=quotas)
    for each in (first, second):
        end(each.balancer, pick(each.balancer), hint=Hint(quota_name="org-1"))
    (view,) = second.balancer.view(0.0).quotas
    assert view.counted_as == "q-a"
    taken = first.served()
    assert second.served() == 0
    assert taken == 9, "what the second spent before it was known is the provider's to tell"
    first.balancer.close()
    assert second.balancer.view(0.0).quotas[0].counted_as is None
    second.balancer.reconfigure([endpoint("b")], quotas, make_strategy("round_robin"))
    assert second.served() == 9


def test_changed_limits_hold_in_every_pool() -> None:
    book = QuotaBook()
    first, second = Pool(book, endpoint("a", quota_id="q")), Pool(book, endpoint("b", quota_id="q"))
    smaller = replace(ORGANISATION, limits=Limits(rpm=3))
    pick(second.balancer, now=5.0)
    first.balancer.reconfigure([endpoint("a", quota_id="q")], [smaller], make_strategy("round_robin"))
    assert second.served(5.0) <= 3


def test_a_dropped_ledger_lives_on_in_no_pool() -> None:
    book, quota = QuotaBook(), Quota("q", Limits(rpm=10), "openai")
    first, second = (Pool(book, endpoint(name, quota_id="q", provider="openai"), quotas=(quota,)) for name in "ab")
    assert first.served() == 10
    assert isinstance(second.balancer.acquire(ASK, now=0.0), Wait)
    for number in range(MAX_FAMILIES + 1):
        end(first.balancer, pick(first.balancer, replace(ASK, model=f"m{number}"), now=1.0), now=1.0)
    assert second.served(1.0) + first.served(1.0) == 10


def test_leases_of_a_closed_pool_are_given_back() -> None:
    book = QuotaBook()
    first, second = Pool(book, endpoint("a", quota_id="q")), Pool(book, endpoint("b", quota_id="q"))
    lease = pick(first.balancer)
    first.balancer.close()
    end(first.balancer, lease, OutcomeKind.CONNECT_FAILED, hint=Hint(quota_name="late"))
    assert second.served() == 10


def test_what_another_version_saved_in_another_shape_is_left_out() -> None:
    book = QuotaBook()
    of_another_version: Any = {"q": {"": [1, "two"], "other": {"told": {"rpm": 5}}}, "r": {"": None}}
    book.recall(of_another_version)
    assert Pool(book, endpoint("a", quota_id="q")).served() == 10
