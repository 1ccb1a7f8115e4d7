"""The exchange of one quota: nothing is granted twice, what is not used comes back, and everybody gets a turn."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.leases.row import GRACE_S, LEASE_S, Draw, Grant, Report, Row, exchange, later

NOW = 1_000_000.0


def report(lessee: str, *, limit: float = 60.0, **draw: float) -> Report:
    """One lessee's word on requests a minute."""
    said = Draw("bucket", limit, 60.0, need=1.0, want=1.0)
    for name, value in draw.items():
        setattr(said, name, bool(value) if name == "leaving" else value)
    return Report(lessee, {"|rpm": said}, leaving=said.leaving)


def granted(row: Row, said: Report, now: float) -> Grant:
    return exchange(row, said, now).grants["|rpm"]


@st.composite
def exchanges(draw: st.DrawFn) -> list[tuple[int, float, float, float, float]]:
    """(process, seconds since the last exchange of anyone, wanted, share of the held that was spent, kept)."""
    return draw(
        st.lists(
            st.tuples(
                st.integers(0, 4), st.floats(0, 8), st.floats(0, 80), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])
            ),
            max_size=40,
        )
    )


@given(steps=exchanges(), limit=st.sampled_from([3.0, 60.0, 6000.0]))
def test_what_all_hold_and_have_spent_is_never_more_than_the_limit(
    steps: list[tuple[int, float, float, float, float]], limit: float
) -> None:
    row, now = Row(), NOW
    spent = dict.fromkeys(range(5), 0.0)
    held = dict.fromkeys(range(5), 0.0)
    ends = dict.fromkeys(range(5), 0.0)
    log: list[tuple[float, float]] = []
    for process, wait_s, want, use, kept in steps:
        now += wait_s
        if now >= ends[process]:
            held[process] = 0.0  # its own clock said so, no later than the store's
        used = held[process] * use
        spent[process] += used
        log.append((now, used))
        keep = (held[process] - used) * kept
        held[process] = granted(
            row, report(str(process), limit=limit, want=want, spent=spent[process], keep=keep, rate=1.0), now
        ).held
        ends[process] = now + LEASE_S
        # In all the time so far: a full bucket and what came back.
        holding = sum(amount for each, amount in held.items() if now < ends[each])
        assert sum(amount for _, amount in log) + holding <= limit + limit / 60.0 * (now - NOW) + 1e-6
        assert sum(lessee.holdings["|rpm"].share for lessee in row.lessees.values()) <= 1.0 + 1e-9


def test_those_in_want_get_equal_parts_of_what_is_free() -> None:
    row = Row()
    for name in "abc":
        granted(row, report(name, want=60.0, rate=10.0), NOW)
    row.accounts["|rpm"].level, row.accounts["|rpm"].at = 45.0, NOW
    for lessee in row.lessees.values():
        lessee.holdings["|rpm"].held = 0.0
    assert granted(row, report("a", want=60.0, rate=10.0), NOW).held == 15.0


def test_who_wants_little_gets_it_beside_one_who_wants_all() -> None:
    row = Row()
    granted(row, report("small", want=5.0, rate=3.0), NOW)
    greedy = granted(row, report("greedy", want=60.0, rate=60.0), NOW)
    assert greedy.held == 55.0
    assert granted(row, report("small", want=5.0, keep=0.0, spent=5.0, rate=3.0), NOW + 1).held >= 0.0
    assert greedy.short


def test_what_is_not_used_is_free_for_others_at_the_next_exchange() -> None:
    row = Row()
    assert granted(row, report("a", want=60.0), NOW).held == 60.0
    assert granted(row, report("b", want=30.0), NOW).held == 0.0
    granted(row, report("a", want=0.0), NOW)
    assert granted(row, report("b", want=30.0), NOW).held == 30.0


def test_three_requests_a_minute_go_round_between_four_processes() -> None:
    row, turns = Row(), dict.fromkeys("abcd", 0)
    spent = dict.fromkeys("abcd", 0.0)
    for second in range(400):
        for name in "abcd":
            said = report(name, limit=3.0, want=1.0, spent=spent[name], rate=1.0)
            held = granted(row, said, NOW + second + ord(name) / 1000).held
            assert held in (0.0, 1.0)
            spent[name] += held
            turns[name] += int(held)
    assert sum(turns.values()) in (22, 23)
    assert max(turns.values()) - min(turns.values()) <= 1


def test_who_needs_more_than_its_part_gets_all_it_needs_in_turn() -> None:
    row = Row()
    first = Report("a", {"|tpm": Draw("bucket", 100.0, 60.0, want=60.0, need=60.0, rate=2.0)})
    second = Report("b", {"|tpm": Draw("bucket", 100.0, 60.0, want=60.0, need=60.0, rate=2.0)})
    assert exchange(row, first, NOW).grants["|tpm"].held == 60.0
    assert exchange(row, second, NOW).grants["|tpm"].held == 0.0
    spent = Report("a", {"|tpm": Draw("bucket", 100.0, 60.0, want=60.0, need=60.0, spent=60.0, rate=2.0)})
    assert exchange(row, spent, NOW + 6).grants["|tpm"].held == 0.0  # b has waited longer
    assert exchange(row, second, NOW + 18.1).grants["|tpm"].held == 60.0


def test_a_vanished_lessee_is_charged_what_it_held_and_its_share_is_free() -> None:
    row = Row()
    granted(row, report("gone", want=40.0, rate=1.0), NOW)
    granted(row, report("here", want=10.0, rate=1.0), NOW + 1)
    grant = granted(row, report("here", want=60.0, rate=1.0, keep=10.0), NOW + LEASE_S + 0.1)
    assert grant.lessees == 1
    assert grant.available == pytest.approx(60.0 - 40.0)
    assert grant.held == 20.0


def test_nobody_is_given_up_because_the_store_was_away() -> None:
    row = Row()
    granted(row, report("a", want=30.0), NOW)
    granted(row, report("b", want=30.0), NOW)
    back = NOW + 600
    assert granted(row, report("a", want=30.0), back).lessees == 2
    assert granted(row, report("a", want=30.0), back + GRACE_S + 0.1).lessees == 1


def test_a_lessee_that_leaves_gives_everything_back_at_once() -> None:
    row = Row()
    granted(row, report("a", want=60.0), NOW)
    assert exchange(row, report("a", leaving=1.0), NOW).grants == {}
    assert row.lessees == {}
    assert granted(row, report("b", want=60.0), NOW).held == 60.0


def test_a_report_that_is_taken_twice_is_charged_once() -> None:
    row = Row()
    granted(row, report("a", want=10.0), NOW)
    granted(row, report("a", want=10.0, spent=10.0), NOW)
    assert granted(row, report("a", want=10.0, spent=10.0), NOW).available == pytest.approx(50.0)


def test_a_dated_report_that_is_taken_twice_is_charged_once() -> None:
    """The store answered too late: it was taken, and nobody told the process."""
    row = Row()

    def said(spent: float, *recent: tuple[float, float], now: float) -> float:
        draw = Draw("sliding", 100.0, 10.0, spent=spent, recent=list(recent), want=50.0, need=1.0)
        return exchange(row, Report("a", {"|rpm": draw}), now).grants["|rpm"].available

    said(0.0, now=NOW)
    assert said(20.0, (0.5, 20.0), now=NOW + 1.0) == 80.0
    assert said(25.0, (1.5, 20.0), (0.2, 5.0), now=NOW + 2.0) == 75.0
    assert said(24.0, (3.5, 20.0), (2.2, 5.0), now=NOW + 4.0) == 75.0, "what was given back stays until it leaves"
    assert said(24.0, now=NOW + 14.0) == 100.0


def test_one_who_was_given_up_is_charged_only_for_what_was_not_confirmed() -> None:
    row = Row()
    granted(row, report("a", want=10.0, spent=1000.0, acked=990.0), NOW)
    assert row.accounts["|rpm"].available(NOW) == pytest.approx(50.0)


def test_facts_reach_the_others_and_not_their_author() -> None:
    row = Row()
    said = report("a")
    said.facts["told||rpm"] = 300
    assert exchange(row, said, NOW).facts == {}
    assert exchange(row, report("b"), NOW).facts["told||rpm"].value == 300


def test_a_store_that_was_emptied_is_filled_again_by_who_remembers() -> None:
    row = Row()
    for _ in range(5):
        granted(row, report("old", want=60.0), NOW)
    remembered = msgspec.json.decode(msgspec.json.encode(row), type=Row)
    fresh = Row()
    granted(fresh, report("new", want=5.0), NOW)
    both = later(fresh, remembered)
    assert set(both.lessees) == {"old", "new"}
    assert granted(both, report("new", want=60.0, keep=5.0), NOW).held == 5.0


def test_a_clock_that_jumps_back_neither_prolongs_leases_nor_refills() -> None:
    row = Row()
    granted(row, report("a", want=60.0), NOW)
    granted(row, report("a", want=60.0, spent=60.0), NOW)
    assert granted(row, report("a", want=60.0, spent=60.0), NOW - 3600).held == 0.0


def test_what_is_given_back_of_a_window_that_is_over_is_nothing_to_the_next_one() -> None:
    row, ends = Row(), (NOW // 60.0 + 1.0) * 60.0

    def spend(lessee: str, spent: float, now: float) -> float:
        draw = Draw("fixed", 60.0, 60.0, spent=spent, want=60.0, span_s=1.0)
        return exchange(row, Report(lessee, {"|tpm": draw}), now).grants["|tpm"].available

    spend("a", 0.0, ends - 2.0)
    spend("a", 50.0, ends - 1.0)
    assert spend("a", 10.0, ends - 0.5) == 50.0, "in its own window it is there again"
    spend("a", 50.0, ends - 0.4)
    spend("b", 0.0, ends + 0.1)
    spend("b", 40.0, ends + 0.2)
    assert spend("a", 10.0, ends + 0.3) == 20.0
