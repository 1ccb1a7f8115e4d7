"""Slow and malformed callers get a short answer; a drain turns readiness off and finishes what is in flight."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.descriptors import LINGERING
from gateway.server import AddressTaken, GatewayServer, make_server, open_socket, say_address
from gateway.settings import read_settings
from gateway.teardown import CLOSE_S

SETTINGS = replace(read_settings({}), drain_lead_s=0.0, drain_s=5.0, max_connections=3)


class Running:
    """A server over an application that reads its body and answers, holding `/held` until `release` is set."""

    def __init__(self, *, drain_lead_s: float = 0.0, starts_slowly: bool = False, **more: Any) -> None:
        settings = replace(SETTINGS, drain_lead_s=drain_lead_s)
        self.release = asyncio.Event()
        self.entered = asyncio.Event()
        self.drained: list[str] = []
        self.bounds_s: list[float] = []
        self.ended: list[str] = []
        self.starts_slowly = starts_slowly
        self.socket = open_socket("127.0.0.1", 0)
        self.port: int = self.socket.getsockname()[1]
        self.server: GatewayServer = make_server(
            self.app,
            settings,
            on_drain=lambda: self.drained.append("drain"),
            on_end=self.bounds_s.append,
            interrupt_start=self.release.set,
            **more,
        )
        self.task = asyncio.create_task(self.server._serve([self.socket]))

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            if self.starts_slowly:
                self.entered.set()
                await self.release.wait()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.ended.append("application")
            await send({"type": "lifespan.shutdown.complete"})
            return
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.disconnect":
            return
        if scope["path"] == "/held":
            self.entered.set()
            try:
                await self.release.wait()
            finally:
                self.ended.append("request")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def started(self) -> None:
        async with asyncio.timeout(10):
            while not self.server.started:
                await asyncio.sleep(0)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    def sweep(self, later_s: float) -> None:
        """Let the sweep see the clock `later_s` ahead."""
        now = asyncio.get_running_loop().time() + later_s
        for connection in list(self.server.server_state.connections):
            timeouts_s = SETTINGS.header_timeout_s, SETTINGS.body_timeout_s, SETTINGS.send_timeout_s
            connection.check_deadlines(now, *timeouts_s)  # type: ignore[union-attr]


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    one = Running()
    await one.started()
    yield one
    one.release.set()
    one.server.should_exit = one.server.force_exit = True
    await one.task


async def settle(running: Running) -> None:
    """Let the server read what was sent: a whole exchange on another connection is answered after it."""
    reader, writer = await running.open()
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    await reader.read()
    writer.close()


def problem(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    document = json.loads(body)
    assert document["request_id"].encode() in head
    return document["status"], document["code"]


async def test_a_head_that_does_not_come_is_given_up(running: Running) -> None:
    reader, writer = await running.open()
    writer.write(b"GET / HTTP/1.1\r\nhost:")
    await settle(running)
    running.sweep(SETTINGS.header_timeout_s - 5)
    running.sweep(SETTINGS.header_timeout_s + 5)
    assert problem(await reader.read()) == (408, "head_timeout")
    writer.close()


async def test_a_connection_that_says_nothing_is_closed_in_silence(running: Running) -> None:
    reader, writer = await running.open()
    await settle(running)
    running.sweep(SETTINGS.header_timeout_s + 5)
    assert await reader.read() == b""
    writer.close()


async def test_a_body_that_stops_is_given_up(running: Running) -> None:
    reader, writer = await running.open()
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
    await settle(running)
    running.sweep(SETTINGS.body_timeout_s + 5)
    assert problem(await reader.read()) == (408, "body_timeout")
    writer.close()


async def test_a_slow_answer_is_nobodys_fault(running: Running) -> None:
    reader, writer = await running.open()
    writer.write(b"GET /held HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    await running.entered.wait()
    running.sweep(10_000)
    running.release.set()
    assert (await reader.read()).endswith(b"ok")
    writer.close()


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"GET /\x00 HTTP/1.1\r\n\r\n"])
async def test_bytes_that_are_no_request(running: Running, sent: bytes) -> None:
    reader, writer = await running.open()
    writer.write(sent)
    assert problem(await reader.read()) == (400, "malformed_http")
    writer.close()


async def fill(running: Running) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Take every place for a connection, and keep it."""
    kept = [await running.open() for _ in range(3)]
    for reader, writer in kept:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readuntil(b"ok")).endswith(b"ok")
    return kept


async def asked(running: Running, request: bytes) -> bytes:
    """Send `request` over a connection of its own and return all that comes until the server ends it."""
    reader, writer = await running.open()
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


async def test_too_many_connections(running: Running) -> None:
    kept = await fill(running)
    posted = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
    for request in (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n", posted):
        assert problem(await asked(running, request)) == (503, "too_many_connections")
    for _, each in kept:
        each.close()


@pytest.mark.parametrize("path", [b"/livez", b"/metrics", b"/livez?now"])
async def test_a_full_process_says_that_it_is_alive(running: Running, path: bytes) -> None:
    kept = await fill(running)
    head = b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n"
    answer = await asked(running, head)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer, "the place is for whoever asks next"
    answers = await asked(running, head + b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answers.count(b"HTTP/1.1 ") == 1, "nothing else comes behind it"
    for _, each in kept:
        each.close()


async def test_callers_who_linger_leave_room_to_ask_whether_a_full_process_is_alive(running: Running) -> None:
    kept = await fill(running)
    refused = [await running.open() for _ in range(2 * LINGERING)]
    for reader, writer in refused:
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n")
        assert problem(await reader.read()) == (503, "too_many_connections")
    assert (await asked(running, b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    for _, each in [*kept, *refused]:
        each.close()


async def test_a_full_process_does_not_wait_long_for_a_head(running: Running) -> None:
    kept = await fill(running)
    reader, writer = await running.open()
    while len(running.server.server_state.connections) < 4:
        await asyncio.sleep(0)
    running.sweep(2.5)
    assert problem(await reader.read()) == (503, "too_many_connections")
    for _, each in [*kept, (reader, writer)]:
        each.close()


async def test_a_drain_finishes_what_is_in_flight(running: Running) -> None:
    reader, writer = await running.open()
    writer.write(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
    await running.entered.wait()
    running.server.should_exit = True
    async with asyncio.timeout(10):
        while not running.drained:
            await asyncio.sleep(0.01)
    running.release.set()
    answer = await reader.read()
    assert answer.endswith(b"ok")
    await running.task
    with pytest.raises(OSError, match="onnect"):
        await running.open()
    writer.close()


async def test_a_drain_asks_callers_to_come_back_over_a_new_connection() -> None:
    one = Running(drain_lead_s=60.0)
    await one.started()
    kept, held = await one.open(), await one.open()
    held[1].write(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
    await one.entered.wait()
    one.server.handle_exit(signal.SIGTERM, None)
    async with asyncio.timeout(10):
        while not one.drained:
            await asyncio.sleep(0.01)
    kept[1].write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    one.release.set()
    for reader, writer in (kept, held):
        answer = await reader.read()  # to the end of the connection: the server closes it after this answer
        assert b"connection: close" in answer.lower()
        assert answer.endswith(b"ok")
        writer.close()
    one.server.handle_exit(signal.SIGTERM, None)  # a second signal cuts the lead time short
    await one.task
    one.socket.close()


@pytest.mark.parametrize("before", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HT"])
async def test_a_drain_answers_who_has_connected_and_not_quite_asked(running: Running, before: bytes) -> None:
    reader, writer = await running.open()
    writer.write(before)
    await settle(running)
    running.server.should_exit = True
    async with asyncio.timeout(10):
        while not running.drained:
            await asyncio.sleep(0)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".removeprefix(before[-8:]))
    answer = await reader.read()
    assert answer.endswith(b"ok")
    assert b"connection: close" in answer.rpartition(b"HTTP/1.1")[2]
    assert answer.count(b"HTTP/1.1 200 OK") == max(1, before.count(b"GET"))
    writer.close()
    await running.task


async def test_a_drain_does_not_wait_long_for_who_has_connected_and_does_not_ask(running: Running) -> None:
    protocol: Any = running.server.config.http_protocol_class
    protocol.first_head_s = 0.01
    reader, writer = await running.open()
    await settle(running)
    running.server.should_exit = True
    assert await reader.read() == b""
    writer.close()
    await running.task


async def test_a_second_signal_ends_what_is_in_flight_and_still_closes_the_application() -> None:
    one = Running()
    await one.started()
    reader, writer = await one.open()
    writer.write(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
    await one.entered.wait()
    one.server.handle_exit(signal.SIGTERM, None)
    async with asyncio.timeout(10):
        while not one.drained:
            await asyncio.sleep(0.01)
    one.server.handle_exit(signal.SIGTERM, None)
    async with asyncio.timeout(10):
        await one.task
    assert not (await reader.read()).endswith(b"ok")
    assert one.ended == ["request", "application"], "in this order: what was cut is still accounted for"
    writer.close()
    one.socket.close()


async def test_a_second_signal_does_not_put_off_when_the_process_should_be_gone() -> None:
    one = Running(drain_lead_s=1.0)
    await one.started()
    for _ in range(3):
        one.server.handle_exit(signal.SIGTERM, None)
    await one.task
    assert one.bounds_s[0] == 1.0 + SETTINGS.drain_s + CLOSE_S
    assert one.bounds_s == sorted(one.bounds_s, reverse=True)
    one.socket.close()


async def test_a_signal_during_the_start_interrupts_it_and_nobody_is_served() -> None:
    one = Running(drain_lead_s=1000.0, starts_slowly=True)
    one.socket.listen()
    await one.entered.wait()
    reader, writer = await one.open()
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    one.server.handle_exit(signal.SIGTERM, None)
    async with asyncio.timeout(10):
        await one.task
    assert one.ended == ["application"]
    one.socket.close()
    with suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()


async def test_it_accepts_when_it_is_told_and_leaves_off_when_it_is_told() -> None:
    one = Running(accepts_at_once=False)
    await one.started()
    one.socket.listen()
    reader, writer = await one.open()  # into the kernel's queue
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await asyncio.sleep(0)
    assert not one.server.server_state.connections
    for _ in range(2):
        await one.server.accept()
        await one.server.accept()
        assert (await reader.readuntil(b"ok")).endswith(b"ok")
        one.server.leave_off()
        assert await reader.read() == b""
        writer.close()
        reader, writer = await one.open()
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0)
        assert not one.server.server_state.connections
    one.server.handle_exit(signal.SIGTERM, None)
    await one.task
    writer.close()
    one.socket.close()


def test_a_taken_address_is_told_before_anything_is_started() -> None:
    first = open_socket("127.0.0.1", 0)
    first.listen()
    with pytest.raises(AddressTaken, match="cannot be listened on"):
        open_socket("127.0.0.1", first.getsockname()[1])
    first.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_port_that_was_found_is_told(host: str, caplog: pytest.LogCaptureFixture) -> None:
    with open_socket(host, 0) as listening, caplog.at_level("INFO"):
        say_address(listening)
        bound = listening.getsockname()[:2]

    told = urlsplit("//" + caplog.messages[0].removeprefix("listening on "))
    assert (told.hostname, told.port) == bound
