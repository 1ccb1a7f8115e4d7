"""What chaos takes for a violation, and how its faults are drawn: a check that excuses everything shows nothing."""

from __future__ import annotations

import itertools
import random

from tests.chaos.course import deals, possible, together
from tests.chaos.faults import FAULTS
from tests.chaos.line import GRACE_S, TOTAL_S
from tests.chaos.strikes import BROKEN, NOTHING, RECONNECT_S, Strike, Strikes
from tests.chaos.traffic import Ledger


def strikes(*, process: str | None, excuses: frozenset[str], takes_postgres: bool = False) -> Strikes:
    """Return one fault that was on from 10 to 20."""
    strike = Strike("a fault", process, excuses, 10.0, takes_postgres)
    strike.mended(20.0)
    return Strikes([strike])


def test_a_fault_that_is_hidden_excuses_nothing() -> None:
    on = strikes(process=None, excuses=NOTHING)
    wrong = on.judge("serve", 11.0, 12.0, "503")
    assert wrong == "serve: calls that could be saved ended '503' under a fault"
    assert on.judge("serve", 11.0, 12.0, "200") is None
    assert on.saved == 1


def test_a_fault_excuses_its_own_endings_of_its_own_process_in_its_own_time() -> None:
    on = strikes(process="serve", excuses=BROKEN)
    assert on.judge("serve", 5.0, 10.0, "none") is None, "it was under way when the fault began"
    assert on.judge("serve", 20.0, 21.0, "cut") is None
    assert on.judge("serve", 20.1, 21.0, "cut") is not None
    assert on.judge("serve", 5.0, 9.9, "cut") is not None
    assert on.judge("gateway", 11.0, 12.0, "none") is not None
    assert on.judge("serve", 11.0, 12.0, "503") is not None
    assert on.excused == {("none", "a fault"): 1, ("cut", "a fault"): 1}


def test_what_cannot_be_felt_any_more_excuses_only_management() -> None:
    on = strikes(process="gateway", excuses=BROKEN, takes_postgres=True)
    on.all[0].felt_until = 12.0
    assert on.judge("gateway", 11.0, 13.0, "none") is None
    assert on.judge("gateway", 12.5, 13.0, "none") is not None
    assert on.judge_management("control", 19.0, 20.0, "503") is None


def test_without_a_fault_every_call_is_answered_well() -> None:
    assert Strikes().judge("serve", 1.0, 2.0, "none") is not None
    assert Strikes().judge_management("control", 1.0, 2.0, "503") is not None


def test_management_may_miss_postgres_and_its_own_process() -> None:
    for on in (
        strikes(process="serve", excuses=NOTHING, takes_postgres=True),
        strikes(process="control", excuses=BROKEN),
    ):
        assert on.judge_management("control", 20.0 + RECONNECT_S, 30.0, "503") is None
        assert on.judge_management("control", 20.1 + RECONNECT_S, 30.0, "503") is not None
    assert strikes(process="serve", excuses=BROKEN).judge_management("control", 11.0, 12.0, "503") is not None


def test_what_must_not_be_is_told_once_with_its_count() -> None:
    ledger = Ledger()
    for ended in (1.5, 3.0):
        ledger.polite("serve", 1.0, ended, "503")
    assert ledger.violations() == [
        "2 × serve: calls that could be saved ended '503' under no fault (after 0.5 to 2.0 s)"
    ]


def test_a_call_that_outlives_its_deadline_is_late_though_it_ends_well() -> None:
    ledger = Ledger()
    ledger.polite("serve", 0.0, TOTAL_S + GRACE_S, "200")
    assert ledger.violations() == []
    ledger.polite("serve", 0.0, TOTAL_S + GRACE_S + 0.1, "200")
    assert ledger.violations() == [
        "1 × serve: calls that could be saved ended 'late' under no fault (after 12.1 to 12.1 s)"
    ]


def test_a_fault_that_did_nothing_is_named() -> None:
    on = Strikes([Strike("one", None, NOTHING, 0.0, took=True), Strike("other", None, NOTHING, 0.0)])
    assert on.idle() == ["other"]


def test_every_fault_is_dealt_before_one_comes_again() -> None:
    names = possible(2)
    for seed in range(50):
        dealt: list[str] = []
        for hand in itertools.islice(deals(names, random.Random(seed)), len(names)):
            assert len(hand) in {1, 2}
            assert len(hand) == 1 or together(FAULTS[hand[0]], FAULTS[hand[1]])
            dealt += hand
        assert set(dealt[: len(names)]) == set(names)


def test_two_faults_at_a_time_strike_two_processes() -> None:
    for first, second in itertools.permutations(FAULTS.values(), 2):
        if together(first, second) and first.strikes and second.strikes:
            mine, others = (({"gateway"} if each.needs_workers else {*each.strikes}) for each in (first, second))
            assert len(mine | others) > 1


def test_one_worker_cannot_be_killed_beside_a_sibling() -> None:
    assert set(FAULTS) - set(possible(1)) == {"kill -9 of one worker", "a worker is replaced while Postgres is down"}
    assert set(possible(2)) == set(FAULTS)
