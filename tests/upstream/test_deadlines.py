"""The one timer of a connection, by a clock that is turned by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from gateway.upstream.errors import UpstreamTimeout
from gateway.upstream.http1 import Http1Connection
from gateway.upstream.message import Deadlines
from gateway.upstream.response import UpstreamResponse
from tests.upstream.test_differential import Sink

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Clock:
    """What a connection needs of an event loop; a timer is its own handle."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Clock.Timer] = []

    class Timer:
        def __init__(self, timers: list[Clock.Timer], at: float, call: Callable[[], None]) -> None:
            self.timers, self.at, self.call = timers, at, call

        def cancel(self) -> None:
            self.timers.remove(self)

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, call: Callable[[], None]) -> Clock.Timer:
        self.timers.append(Clock.Timer(self.timers, at, call))
        return self.timers[-1]

    def turn_to(self, now: float) -> None:
        """Let pass what time there is until `now`."""
        while due := [timer for timer in self.timers if timer.at <= now]:
            timer = min(due, key=lambda each: each.at)
            self.timers.remove(timer)
            self.now = timer.at
            timer.call()
        self.now = now


def answering(deadlines: Deadlines) -> tuple[Clock, Http1Connection, UpstreamResponse]:
    clock = Clock()
    connection = Http1Connection(cast(Any, clock), lambda _: None, lambda _: None)
    connection.connection_made(Sink())
    response = connection.begin(b"POST / HTTP/1.1\r\n\r\n", b"", deadlines)
    connection.data_received(HEAD)
    return clock, connection, response


def phase_of(response: UpstreamResponse) -> str:
    error = response.take_error()
    assert isinstance(error, UpstreamTimeout)
    return error.phase


def test_whatever_comes_renews_the_patience_with_a_silence() -> None:
    clock, connection, response = answering(Deadlines(idle_s=1.0))
    for at in (0.9, 1.8, 2.7):
        clock.turn_to(at)
        connection.data_received(b"1\r\nx\r\n")
        assert len(clock.timers) == 1
    clock.turn_to(3.6)
    assert not response.failed
    clock.turn_to(3.8)
    assert phase_of(response) == "idle"


def test_what_never_is_silent_ends_with_the_exchange() -> None:
    clock, connection, response = answering(Deadlines(idle_s=1.0, total_s=2.0))
    for at in (0.9, 1.8):
        clock.turn_to(at)
        connection.data_received(b"1\r\nx\r\n")
    clock.turn_to(1.99)
    assert not response.failed
    clock.turn_to(2.0)
    assert phase_of(response) == "total"


def test_a_shorter_patience_of_the_next_request_moves_the_timer() -> None:
    clock, connection, response = answering(Deadlines(idle_s=100.0))
    connection.data_received(b"0\r\n\r\n")
    assert response.ended
    clock.turn_to(5.0)
    following = connection.begin(b"POST / HTTP/1.1\r\n\r\n", b"", Deadlines(first_byte_s=1.0))
    clock.turn_to(5.9)
    assert not following.failed
    clock.turn_to(6.0)
    assert phase_of(following) == "first_byte"


def test_what_is_thrown_away_is_waited_for_no_longer_than_that_is_worth() -> None:
    clock, connection, response = answering(Deadlines(idle_s=100.0))
    response.status = 500
    response.close()
    for at in (0.5, 0.9):
        clock.turn_to(at)
        connection.data_received(b"1\r\nx\r\n")
    clock.turn_to(1.0)
    assert phase_of(response) == "total"
