"""The queue: its order, fairness and bounds by example, then any history against a plain model of the rules."""

from __future__ import annotations

from collections import Counter
from math import inf
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.balancing.admission import PATIENCE, Admission, Away, Joined, Ticket, TurnedAway


class Door:
    """Makes tickets with rising ids."""

    def __init__(self, **options: object) -> None:
        self.queue = Admission(**options)  # type: ignore[arg-type]
        self.count = 0

    def join(self, client: str = "a", now: float = 0.0, **more: object) -> Joined | TurnedAway:
        self.count += 1
        fields = {"id": self.count, "client_id": client, "joined_at": now} | more
        return self.queue.join(Ticket(**fields), now)  # type: ignore[arg-type]

    def drain(self, now: float = 1.0) -> list[int]:
        order = []
        while (ticket := self.queue.next(now)) is not None:
            order.append(ticket.id)
        return order


def test_one_client_is_first_in_first_out() -> None:
    door = Door()
    for _ in range(20):
        door.join()
    assert door.drain() == list(range(1, 21))


def test_critical_first() -> None:
    door = Door()
    for priority in (2, 1, 0, 1, 0):
        door.join(priority=priority)
    assert door.drain() == [3, 5, 2, 4, 1]


def test_clients_take_turns_whatever_their_number_of_tickets() -> None:
    door = Door()
    for _ in range(30):
        door.join("greedy")
    for _ in range(3):
        door.join("modest")
    first = door.drain()[:6]
    assert sum(ticket > 30 for ticket in first) == 3


def test_turns_are_shared_by_cost() -> None:
    door = Door(max_waiting=1000)
    for _ in range(100):
        door.join("long", cost=300.0)
        door.join("short", cost=100.0)
    owners = Counter("short" if ticket % 2 == 0 else "long" for ticket in door.drain()[:80])
    assert owners["short"] == pytest.approx(60, abs=8)


def test_silence_saves_up_no_turns() -> None:
    door = Door()
    for _ in range(40):
        door.join("busy")
    for _ in range(20):
        door.queue.next(0.0)
    for _ in range(20):
        door.join("newcomer")
    owners = ["newcomer" if ticket > 40 else "busy" for ticket in door.drain()[:10]]
    assert 4 <= owners.count("newcomer") <= 6


def test_nobody_starves_below_a_steady_stream_of_critical_requests() -> None:
    door = Door()
    door.join("patient", priority=9)
    for turn in range(2 * PATIENCE):
        door.join("critical", now=1.0 + turn, priority=0)
        ticket = door.queue.next(1.0 + turn)
        assert ticket is not None
        if ticket.client_id == "patient":
            return
    pytest.fail("starved")


def test_a_line_without_capacity_is_skipped_and_keeps_its_place() -> None:
    door = Door()
    door.join(line="full")
    door.join(line="open")
    ticket = door.queue.next(0.0, skip={"full"})
    assert ticket is not None
    assert ticket.id == 2
    assert door.queue.next(0.0, skip={"full", "open"}) is None
    assert door.drain() == [1]


def test_a_ticket_that_is_put_back_is_next_again() -> None:
    door = Door()
    for client in "abcab":
        door.join(client)
    ticket = door.queue.next(0.0)
    assert ticket is not None
    door.queue.put_back(ticket, 0.0)
    again = door.queue.next(0.0)
    assert again == ticket


def test_full_turns_away_unless_someone_less_entitled_can_go() -> None:
    door = Door(max_waiting=3)
    for _ in range(3):
        door.join("greedy", priority=1)
    assert isinstance(door.join("greedy"), TurnedAway)
    modest = door.join("modest")
    assert isinstance(modest, Joined)
    assert modest.displaced is not None
    assert modest.displaced.id == 3
    critical = door.join("critical", priority=0)
    assert isinstance(critical, Joined)
    assert critical.displaced is not None
    assert critical.displaced.client_id == "greedy"
    low = door.join("low", priority=5)
    assert isinstance(low, TurnedAway)
    assert low.reason is Away.FULL
    assert len(door.queue) == 3


def test_no_room_at_all() -> None:
    assert Door(max_waiting=0).join() == TurnedAway(Away.FULL, 0.0)


def test_who_would_be_too_late_is_told_at_once_with_an_honest_delay() -> None:
    door = Door()
    door.join()
    for turn in range(21):
        door.join(now=float(turn))
        door.queue.next(float(turn))
        door.queue.served(float(turn))  # one a second
    for _ in range(9):
        door.join(now=21.0)
    answer = door.join(now=21.0, deadline=25.0)
    assert answer == TurnedAway(Away.TOO_LATE, pytest.approx(10.0, rel=0.05))  # type: ignore[arg-type]
    joined = door.join(now=21.0, deadline=40.0)
    assert isinstance(joined, Joined)
    assert joined.ahead == 10
    ticket = Ticket(99, "a", joined_at=21.0, deadline=30.0)
    assert door.queue.join(ticket, 21.0, earliest=50.0) == TurnedAway(Away.TOO_LATE, 29.0)


def test_quiet_times_say_nothing_about_how_long_a_turn_takes() -> None:
    queue = Admission()
    for at in (0.0, 300.0, 600.0):
        for number in (1, 2):
            joined = queue.join(Ticket(number, "a", joined_at=at, deadline=at + 30.0), at)
            assert isinstance(joined, Joined), f"refused at {at} for a wait that idle minutes were taken for"
        for _ in range(2):
            assert queue.next(at + 0.1) is not None
            queue.served(at + 0.1)


def test_a_stall_is_forgotten() -> None:
    queue = Admission()
    for number in range(3):
        queue.join(Ticket(number, "a"), 0.0)
    for now in (0.0, 50.0):
        queue.next(now)
        queue.served(now)
    late = queue.join(Ticket(7, "b", joined_at=51.0, deadline=81.0), 51.0)
    assert isinstance(late, TurnedAway)
    assert late.retry_after_s >= 45.0
    assert isinstance(queue.join(Ticket(8, "b", joined_at=120.0, deadline=150.0), 120.0), Joined)


def test_deadlines_take_tickets_out() -> None:
    door = Door()
    door.join(deadline=5.0)
    door.join(deadline=9.0)
    door.join()
    assert door.queue.next_deadline() == 5.0
    assert [ticket.id for ticket in door.queue.expire(5.0)] == [1]
    assert door.queue.expire(5.0) == []
    assert door.queue.leave(2)
    assert not door.queue.leave(2)
    assert door.queue.next_deadline() == inf
    assert door.drain() == [3]


def test_the_late_lane_lets_punctual_requests_pass() -> None:
    for late_lane, order in ((False, [1, 2, 3]), (True, [2, 3, 1])):
        door = Door(late_lane=late_lane)
        door.join("a", due=1.0)
        door.join("b", due=100.0)
        door.join("c")
        assert door.drain(now=2.0) == order


def test_the_view_counts() -> None:
    door = Door()
    door.join("a", now=1.0, priority=0)
    door.join("b", now=2.0, priority=2)
    door.join("b", now=3.0, priority=2)
    view = door.queue.view(5.0)
    assert (view.waiting, dict(view.by_priority), dict(view.by_client)) == (3, {0: 1, 2: 2}, {"a": 1, "b": 2})
    assert view.oldest_s == 4.0


def test_clients_that_come_and_go_leave_nothing_behind() -> None:
    door = Door()
    for number in range(500):
        door.join(f"client {number}", priority=number % 50, deadline=1e9, due=1e8)
        door.queue.next(0.0)
    assert not door.queue._levels
    door.join("steady")
    for number in range(500):
        door.join(f"client {number}", deadline=1e9)
        door.queue.leave(door.count)
    (level,) = door.queue._levels.values()
    assert set(level.served) == {"steady"}
    assert len(door.queue._deadlines) < 100


def test_those_who_are_put_back_again_and_again_stand_in_the_queue_once() -> None:
    door = Door()
    for client in ("a", "b"):
        door.join(client, deadline=1e9)
    for _ in range(5_000):
        ticket = door.queue.next(1.0)
        assert ticket is not None
        door.queue.put_back(ticket, 1.0)
    assert max(len(door.queue._arrivals), len(door.queue._deadlines)) < 100
    assert len(door.queue.expire(1e9)) == 2


class Model(RuleBasedStateMachine):
    """Any history of the queue against a plain list of who waits."""

    @initialize(late_lane=st.booleans(), room=st.integers(1, 12))
    def begin(self, late_lane: bool, room: int) -> None:
        self.room, self.late_lane = room, late_lane
        self.queue = Admission(max_waiting=room, late_lane=late_lane)
        self.waiting: dict[int, Ticket] = {}
        self.now, self.count, self.turns = 0.0, 0, 0
        self.rng = Random(3)

    @rule(dt=st.floats(0.0, 5.0))
    def wait(self, dt: float) -> None:
        self.now += dt

    @rule(
        client=st.sampled_from("abc"),
        line=st.sampled_from(["x", "y"]),
        priority=st.integers(0, 2),
        patience=st.sampled_from([2.0, 20.0, inf]),
        cost=st.sampled_from([1.0, 50.0]),
    )
    def join(self, *, client: str, line: str, priority: int, patience: float, cost: float) -> None:
        self.count += 1
        ticket = Ticket(
            self.count, client, line, priority, self.now, self.now + patience, self.now + patience / 2, cost
        )
        match self.queue.join(ticket, self.now):
            case Joined(_, wait_s, displaced):
                assert self.now + wait_s <= ticket.deadline
                if displaced is not None:
                    assert len(self.waiting) == self.room
                    assert displaced.priority >= ticket.priority
                    assert displaced.client_id != ticket.client_id or displaced.priority > ticket.priority
                    del self.waiting[displaced.id]
                self.waiting[ticket.id] = ticket
            case TurnedAway(Away.FULL, _):
                assert len(self.waiting) == self.room
                assert all(each.priority <= ticket.priority for each in self.waiting.values()), (
                    "a lower level had room to give"
                )
            case TurnedAway(Away.TOO_LATE, retry_after_s):
                assert self.now + retry_after_s > ticket.deadline

    @rule(skip=st.frozensets(st.sampled_from(["x", "y"])))
    def turn(self, skip: frozenset[str]) -> None:
        open_to = [each for each in self.waiting.values() if each.line not in skip]
        ticket = self.queue.next(self.now, skip=skip)
        if ticket is None:
            assert not open_to
            return
        self.turns += 1
        assert ticket in open_to

        def level(each: Ticket) -> tuple[int, bool]:
            return each.priority, self.late_lane and each.due <= self.now

        if self.turns % PATIENCE == 0:
            assert (ticket.joined_at, ticket.id) == min((each.joined_at, each.id) for each in open_to)
        else:
            assert level(ticket) == min(level(each) for each in open_to)
            if not self.late_lane:
                before = [
                    each for each in open_to if level(each) == level(ticket) and each.client_id == ticket.client_id
                ]
                assert ticket.id == min(each.id for each in before)
        del self.waiting[ticket.id]
        if self.rng.random() < 0.3:
            self.queue.put_back(ticket, self.now)
            self.waiting[ticket.id] = ticket
            self.turns -= 1

    @precondition(lambda self: self.waiting)
    @rule(at=st.integers(0, 100))
    def leave(self, at: int) -> None:
        ticket_id = list(self.waiting)[at % len(self.waiting)]
        assert self.queue.leave(ticket_id)
        del self.waiting[ticket_id]

    @rule()
    def expire(self) -> None:
        gone = {each.id for each in self.queue.expire(self.now)}
        assert gone == {each.id for each in self.waiting.values() if each.deadline <= self.now}
        for ticket_id in gone:
            del self.waiting[ticket_id]

    @invariant()
    def same_tickets_wait(self) -> None:
        if hasattr(self, "queue"):
            assert {each.id for each in self.queue} == set(self.waiting)
            assert len(self.queue) <= self.room


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
