"""Whom the supervisor starts, ends, kills and lets answer: every case in virtual time."""

from __future__ import annotations

import random
from math import inf
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM, Signals

import pytest

from gateway.crew import (
    END_S,
    FIRST_PAUSE_S,
    FORCED_S,
    GOOD_S,
    HOPELESS,
    LONGEST_PAUSE_S,
    REAP_S,
    START_S,
    Accept,
    Crew,
    Note,
    Phase,
    Send,
    Start,
)

LEAD_S, DRAIN_S = 2.0, 30.0


def crew(count: int = 2) -> Crew:
    return Crew(count, lead_s=LEAD_S, drain_s=DRAIN_S)


def step(crew: Crew, now: float) -> list[Start | Send | Accept]:
    return [action for action in crew.step(now) if not isinstance(action, Note)]


def serving(count: int = 2) -> Crew:
    """Return a crew whose workers, numbered from 1, are all ready at 0."""
    made = crew(count)
    step(made, 0.0)
    for worker in range(1, count + 1):
        made.said(worker, Phase.UP)
        made.said(worker, Phase.READY)
    assert step(made, 0.0) == []
    return made


def test_it_starts_one_for_each_place() -> None:
    assert step(crew(), 0.0) == [Start(1, 0), Start(2, 1)]


def test_one_that_dies_is_started_again_after_pauses_that_double() -> None:
    made, now, pauses = serving(), 0.0, []
    worker = 1
    for _ in range(10):
        made.ended(worker, -9, now)
        step(made, now)
        due = now if worker == 1 else made.wakes_at()
        pauses.append(due - now)
        now = due
        if worker == 1:
            worker = 3  # started at once
            continue
        (started,) = step(made, now)
        assert isinstance(started, Start)
        assert started.place == 0
        worker = started.worker
    assert pauses[:4] == [0.0, FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_one_that_has_lived_starts_anew() -> None:
    made = serving()
    made.ended(1, -9, 0.0)
    assert step(made, 0.0) == [Start(3, 0)]
    made.ended(3, -9, GOOD_S)
    assert step(made, GOOD_S) == [Start(4, 0)]


def test_one_that_does_not_come_up_is_killed_and_one_that_is_not_ready_is_not() -> None:
    made = crew()
    step(made, 0.0)
    made.said(1, Phase.UP)
    assert step(made, START_S - 1) == [Accept(1, on=True)]
    assert made.wakes_at() == START_S
    assert step(made, START_S) == [Send(2, SIGKILL)]
    assert step(made, 10 * START_S) == []


def test_it_gives_up_when_none_ever_comes_up() -> None:
    made = crew(2)
    step(made, 0.0)
    now = 0.0
    for worker in range(1, HOPELESS + 1):
        assert not made.is_ending
        made.ended(worker, 1, now)
        now += 0.0
        step(made, now)
    assert made.is_ending
    assert made.has_failed
    (left,) = made._members  # the last one to be started
    made.ended(left, -9, now)
    assert made.is_over(now)


class TestWhoAnswers:
    def test_one_answers_for_all_while_none_is_ready(self) -> None:
        made = crew()
        step(made, 0.0)
        made.said(2, Phase.UP)
        assert step(made, 1.0) == [Accept(2, on=True)]
        made.said(1, Phase.UP)
        assert step(made, 2.0) == []

    def test_it_leaves_off_when_another_is_ready(self) -> None:
        made = crew()
        step(made, 0.0)
        made.said(1, Phase.UP)
        made.said(2, Phase.UP)
        assert step(made, 1.0) == [Accept(1, on=True)]
        made.said(2, Phase.READY)
        assert step(made, 2.0) == [Accept(1, on=False)]
        made.said(1, Phase.READY)
        assert step(made, 3.0) == []

    def test_one_that_starts_again_waits_while_its_sibling_is_ready(self) -> None:
        made = serving()
        made.ended(1, -9, 1.0)
        assert step(made, 1.0) == [Start(3, 0)]
        made.said(3, Phase.UP)
        assert step(made, 2.0) == []

    def test_it_is_asked_as_soon_as_the_sibling_has_gone(self) -> None:
        made = serving()
        made.ended(1, -9, 1.0)
        step(made, 1.0)
        made.said(3, Phase.UP)
        made.ended(2, -9, 2.0)
        assert step(made, 2.0) == [Start(4, 1), Accept(3, on=True)]

    def test_another_takes_over_from_one_that_answered_and_died(self) -> None:
        made = crew()
        step(made, 0.0)
        made.said(1, Phase.UP)
        made.said(2, Phase.UP)
        step(made, 1.0)
        made.ended(1, -9, 2.0)
        assert step(made, 2.0) == [Start(3, 0), Accept(2, on=True)]


class TestRolls:
    def test_the_new_one_is_ready_before_the_old_one_drains(self) -> None:
        made = serving()
        made.signalled(SIGHUP, 1.0)
        assert step(made, 1.0) == [Start(3, 0)]
        made.said(3, Phase.UP)
        assert step(made, 2.0) == []
        made.said(3, Phase.READY)
        assert step(made, 3.0) == [Send(1, SIGINT)]
        assert step(made, 4.0) == []
        made.ended(1, 0, 5.0)
        assert step(made, 5.0) == [Start(4, 1)]
        made.said(4, Phase.READY)
        assert step(made, 6.0) == [Send(2, SIGINT)]
        made.ended(2, 0, 7.0)
        assert Note(20, "all workers are replaced") in made.step(7.0)

    def test_one_that_does_not_become_ready_ends_the_roll_and_the_old_ones_stay(self) -> None:
        made = serving()
        made.signalled(SIGHUP, 1.0)
        step(made, 1.0)
        made.said(3, Phase.UP)
        assert step(made, 1.0 + START_S) == [Send(3, SIGKILL)]
        made.ended(3, -9, 130.0)
        assert step(made, 130.0) == []
        made.signalled(SIGHUP, 131.0)
        assert step(made, 131.0) == [Start(4, 0)]

    def test_one_that_does_not_drain_is_killed(self) -> None:
        made = serving()
        made.signalled(SIGHUP, 1.0)
        step(made, 1.0)
        made.said(3, Phase.READY)
        step(made, 2.0)
        assert made.wakes_at() == 2.0 + DRAIN_S + END_S
        assert step(made, 2.0 + DRAIN_S + END_S) == [Send(1, SIGKILL)]

    def test_the_new_one_takes_the_place_of_an_old_one_that_dies_meanwhile(self) -> None:
        made = serving()
        made.signalled(SIGHUP, 1.0)
        step(made, 1.0)
        made.ended(1, -9, 2.0)
        assert step(made, 2.0) == [Start(4, 1)]  # on with the next: there is nobody to replace in the first place
        made.said(3, Phase.READY)
        assert step(made, 3.0) == []

    def test_a_place_that_waits_for_its_next_start_is_left_out(self) -> None:
        made = serving()
        made.ended(1, -9, 1.0)
        step(made, 1.0)
        made.ended(3, -9, 1.1)
        made.signalled(SIGHUP, 1.2)
        assert step(made, 1.2) == [Start(4, 1)]
        assert step(made, 1.1 + FIRST_PAUSE_S) == [Start(5, 0)]

    def test_the_end_in_the_middle_is_one_signal_to_each(self) -> None:
        made = serving()
        made.signalled(SIGHUP, 1.0)
        step(made, 1.0)
        made.said(3, Phase.READY)
        step(made, 2.0)  # 1 drains
        made.signalled(SIGTERM, 3.0)
        assert step(made, 3.0) == [Send(2, SIGTERM), Send(3, SIGTERM)]
        made.signalled(SIGTERM, 4.0)
        assert step(made, 4.0) == [Send(1, SIGTERM), Send(2, SIGTERM), Send(3, SIGTERM)]

    def test_the_end_while_the_new_one_starts_reaches_it(self) -> None:
        made = serving()
        made.signalled(SIGHUP, 1.0)
        step(made, 1.0)
        made.signalled(SIGINT, 2.0)
        assert step(made, 2.0) == [Send(1, SIGINT), Send(2, SIGINT), Send(3, SIGTERM)]


class TestTheEnd:
    @pytest.mark.parametrize(("how", "lead_s"), [(SIGTERM, LEAD_S), (SIGINT, 0.0)])
    def test_who_has_not_ended_in_time_is_killed_and_then_left(self, how: Signals, lead_s: float) -> None:
        made = serving()
        made.signalled(how, 100.0)
        assert step(made, 100.0) == [Send(1, how), Send(2, how)]
        made.ended(1, 0, 101.0)
        by = 100.0 + lead_s + DRAIN_S + END_S
        assert made.wakes_at() == by
        assert step(made, by - 1) == []
        assert step(made, by) == [Send(2, SIGKILL)]
        assert not made.is_over(by)
        assert made.is_over(by + REAP_S)
        made.ended(2, -9, by)
        assert made.is_over(by)
        assert not made.has_failed

    def test_a_second_signal_brings_it_forward_and_a_third_does_not_put_it_off(self) -> None:
        made = serving()
        for now in (100.0, 101.0, 110.0):
            made.signalled(SIGTERM, now)
            step(made, now)
        assert made.wakes_at() == 101.0 + FORCED_S

    def test_nobody_is_started_any_more(self) -> None:
        made = serving()
        made.ended(1, -9, 1.0)
        made.signalled(SIGTERM, 1.0)
        made.signalled(SIGHUP, 1.0)
        assert step(made, 2.0) == [Send(2, SIGTERM)]

    @pytest.mark.parametrize("seed", range(50))
    def test_it_is_over_in_time_whatever_happened_before_and_whoever_hangs(self, seed: int) -> None:
        rng = random.Random(seed)
        made, now, alive, begun_at = crew(rng.randrange(1, 4)), 0.0, list[int](), inf
        for _ in range(300):
            now = min(now + rng.expovariate(1.0), max(now, made.wakes_at()))
            match rng.randrange(8):
                case 0 if alive:
                    made.ended(alive.pop(rng.randrange(len(alive))), rng.choice([0, 1, -9]), now)
                case 1:
                    made.signalled(SIGHUP, now)
                case 2 if now > 100.0:
                    made.signalled(rng.choice([SIGTERM, SIGINT]), now)
                    begun_at = min(begun_at, now)
                case _ if alive:
                    made.said(rng.choice(alive), rng.choice([Phase.UP, Phase.READY]))
            for action in step(made, now):
                if isinstance(action, Start):
                    assert now <= begun_at
                    alive.append(action.worker)
                elif isinstance(action, Send) and action.signal is SIGKILL and rng.random() < 0.5:
                    made.ended(action.worker, -9, now)
                    alive.remove(action.worker)
            assert sorted(alive) == sorted(made._members)
            if made.is_over(now):
                return
            assert now < begun_at + LEAD_S + DRAIN_S + END_S + REAP_S
        pytest.fail("it did not end")
