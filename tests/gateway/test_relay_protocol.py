"""The short way from a caller's connection to the data path keeps what uvicorn's way promises."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from gateway.proxy.channel import CallerGone, Channel
from gateway.server import make_server, open_socket
from gateway.settings import read_settings
from gateway.tls import ServerTls

SETTINGS = replace(read_settings({}), drain_lead_s=0.0, drain_s=5.0, keep_alive_s=30.0)


class Running:
    """A server whose relay answers by the path: what it was sent (`/v1/echo`), or later (`/v1/held`)."""

    def __init__(self, tls: ServerTls | None = None, **settings: Any) -> None:
        self.release, self.entered = asyncio.Event(), asyncio.Event()
        self.left = asyncio.Event()
        self.gone: list[str] = []
        self.bodies: list[bytes] = []
        self.socket = open_socket("127.0.0.1", 0)
        self.port: int = self.socket.getsockname()[1]
        made = replace(SETTINGS, **settings)
        self.server = make_server(self.app, made, on_drain=lambda: None, find_relay=lambda: self.serve, tls=tls)
        self.task = asyncio.create_task(self.server._serve([self.socket]))

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        while (await receive()).get("more_body"):
            pass
        body = f"asgi {scope['method']} {scope['path']}".encode()
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})

    async def serve(self, channel: Channel) -> None:
        path = channel.raw_path
        try:
            body = b""
            while data := await channel.receive():
                body += data
            self.bodies.append(body)
        except CallerGone:
            self.gone.append("while sending")
            self.left.set()
            return
        if path == b"/v1/broken":
            raise RuntimeError("as a defect would")
        if path in (b"/v1/held", b"/v1/flood"):
            me = asyncio.current_task()
            assert me is not None

            def leave() -> None:
                self.gone.append("while served")
                self.left.set()
                me.cancel()

            channel.on_gone(leave)
            self.entered.set()
        if path == b"/v1/held":
            await self.release.wait()
        if path == b"/v1/cut":
            await channel.send_head(200, b"content-type: text/event-stream\r\n", hold=True)
            await channel.send(b"data: 1\n\n")
            channel.abort()
            return
        if path == b"/v1/flood":
            await channel.send_head(200, b"")
            for _ in range(400):
                await channel.send(bytes(100_000))
                self.bodies.append(b"")
            await channel.finish()
            return
        if path == b"/v1/large":
            await channel.send_head(200, b"content-length: 16000000\r\n", length=16_000_000, hold=True)
            await channel.finish(bytes(16_000_000))
            return
        answer = b"%b %b?%b %b" % (channel.method.encode(), path, channel.query, body[:100])
        if path == b"/v1/chunked":
            await channel.send_head(200, b"content-type: text/plain\r\n")
            await channel.send(answer)
            await channel.finish(b".")
        else:
            await channel.send_head(200, b"content-length: %d\r\n" % len(answer), length=len(answer), hold=True)
            await channel.finish(answer)
        channel.close()

    def sweep(self, later_s: float) -> None:
        now = asyncio.get_running_loop().time() + later_s
        for connection in list(self.server.server_state.connections):
            timeouts_s = SETTINGS.header_timeout_s, SETTINGS.body_timeout_s, SETTINGS.send_timeout_s
            connection.check_deadlines(now, *timeouts_s)  # type: ignore[union-attr]


@asynccontextmanager
async def server(tls: ServerTls | None = None, **settings: Any) -> AsyncIterator[Running]:
    one = Running(tls, **settings)
    async with asyncio.timeout(10):
        while not one.server.started:
            await asyncio.sleep(0)
    try:
        yield one
    finally:
        one.release.set()
        one.server.should_exit = one.server.force_exit = True
        await one.task


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with server() as one:
        yield one


class Caller:
    """A connection that sends bytes as they are and reads whole answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, running: Running) -> Caller:
        return cls(*await asyncio.open_connection("127.0.0.1", running.port))

    def post(self, path: str, body: bytes = b"hi", *headers: str) -> None:
        head = "\r\n".join([f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers])
        self.writer.write(head.encode() + b"\r\n\r\n" + body)

    async def answer(self) -> tuple[bytes, bytes]:
        """Return head and body of the next answer; its length is told."""
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            return head, await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.read()

    def close(self) -> None:
        self.writer.close()


async def test_a_connection_is_kept_and_its_answers_have_a_date(running: Running) -> None:
    caller = await Caller.of(running)
    for number in range(3):
        caller.post(f"/v1/echo?n={number}", b"body %d" % number)
        head, body = await caller.answer()
        assert body == b"POST /v1/echo?n=%d body %d" % (number, number)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert head.count(b"date: ") == 1
        assert b"connection" not in head
    caller.close()


async def test_answers_of_unknown_length_are_chunked(running: Running) -> None:
    caller = await Caller.of(running)
    caller.post("/v1/chunked", b"x")
    async with asyncio.timeout(10):
        answer = await caller.reader.readuntil(b"0\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert b"content-length" not in head
    assert body == b"13\r\nPOST /v1/chunked? x\r\n1\r\n.\r\n0\r\n\r\n"
    caller.post("/v1/echo", b"again")
    assert (await caller.answer())[1].endswith(b"again")
    caller.close()


async def test_pipelined_requests_are_answered_in_order_whichever_way_they_take(running: Running) -> None:
    caller = await Caller.of(running)
    caller.post("/v1/held", b"1")
    caller.post("/v1/echo", b"2")
    caller.writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
    caller.post("/v1/echo", b"4")
    await running.entered.wait()
    running.release.set()
    bodies = [(await caller.answer())[1] for _ in range(4)]
    assert bodies == [b"POST /v1/held? 1", b"POST /v1/echo? 2", b"asgi GET /livez", b"POST /v1/echo? 4"]
    caller.close()


@pytest.mark.parametrize(
    ("request_line", "said"),
    [
        (b"GET /v1/echo HTTP/1.1", b"asgi GET /v1/echo"),
        (b"PUT /v1/echo HTTP/1.1", b"asgi PUT /v1/echo"),
        (b"POST /api/v1/pools HTTP/1.1", b"asgi POST /api/v1/pools"),
        (b"POST http://x/v1/echo HTTP/1.1", b"asgi POST /v1/echo"),
        (b"POST /v1/echo#part HTTP/1.1", b"asgi POST /v1/echo"),
    ],
)
async def test_what_is_not_hot_takes_the_other_way(running: Running, request_line: bytes, said: bytes) -> None:
    caller = await Caller.of(running)
    caller.writer.write(request_line + b"\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
    assert (await caller.answer())[1] == said
    caller.close()


async def test_a_chunked_body_arrives_whole(running: Running) -> None:
    caller = await Caller.of(running)
    caller.writer.write(b"POST /v1/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await caller.writer.drain()
    caller.writer.write(b"2\r\nde\r\n0\r\n\r\n")
    assert (await caller.answer())[1] == b"POST /v1/echo? abcde"
    caller.close()


async def test_a_large_body_arrives_whole(running: Running) -> None:
    caller = await Caller.of(running)
    body = bytes(range(256)) * 8192
    caller.post("/v1/echo", body)
    await caller.answer()
    assert running.bodies == [body]
    caller.close()


async def test_who_expects_100_continue_is_told_to(running: Running) -> None:
    caller = await Caller.of(running)
    caller.writer.write(b"POST /v1/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n")
    async with asyncio.timeout(10):
        assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    caller.writer.write(b"ok")
    assert (await caller.answer())[1].endswith(b"ok")
    caller.close()


@pytest.mark.parametrize("path", ["/v1/echo", "/other"])
async def test_who_speaks_http_1_0_is_not_told(running: Running, path: str) -> None:
    caller = await Caller.of(running)
    head = b"POST %b HTTP/1.0\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n" % path.encode()
    caller.writer.write(head)
    await caller.writer.drain()
    other = await Caller.of(running)
    other.post("/v1/echo")
    await other.answer()
    other.close()
    caller.writer.write(b"ok")
    assert (await caller.rest()).startswith(b"HTTP/1.1 200")
    caller.close()


async def test_a_caller_that_asks_to_close_is_closed(running: Running) -> None:
    caller = await Caller.of(running)
    caller.post("/v1/echo", b"x", "connection: close")
    answer = await caller.rest()
    assert answer.count(b"connection: close") == 1
    assert answer.endswith(b"x")
    caller.close()


async def test_a_body_that_stops_is_given_up(running: Running) -> None:
    caller = await Caller.of(running)
    caller.writer.write(b"POST /v1/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
    other = await Caller.of(running)
    other.post("/v1/echo")
    await other.answer()
    running.sweep(SETTINGS.body_timeout_s - 5)
    running.sweep(SETTINGS.body_timeout_s + 5)
    head, _, body = (await caller.rest()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(body)["code"] == "body_timeout"
    async with asyncio.timeout(10):
        await running.left.wait()
    assert running.gone == ["while sending"]
    for each in (caller, other):
        each.close()


async def test_an_idle_connection_is_closed_in_its_time(running: Running) -> None:
    caller = await Caller.of(running)
    caller.post("/v1/echo")
    await caller.answer()
    running.sweep(SETTINGS.keep_alive_s - 5)
    caller.post("/v1/echo")
    await caller.answer()
    running.sweep(SETTINGS.keep_alive_s + 5)
    assert await caller.rest() == b""
    caller.close()


async def test_a_caller_that_leaves_ends_its_request(running: Running) -> None:
    caller = await Caller.of(running)
    caller.post("/v1/held")
    await running.entered.wait()
    caller.writer.transport.abort()
    async with asyncio.timeout(10):
        await running.left.wait()
        while running.server.server_state.tasks:
            await asyncio.sleep(0)
    assert running.gone == ["while served"]


async def test_a_caller_that_leaves_ends_its_request_though_it_has_pipelined_another(running: Running) -> None:
    caller = await Caller.of(running)
    caller.post("/v1/held")
    caller.post("/v1/echo", b"never served")
    await running.entered.wait()
    caller.writer.transport.abort()
    async with asyncio.timeout(10):
        await running.left.wait()
    assert running.bodies == [b"hi"]


async def test_a_slow_reader_holds_the_answer_back(running: Running) -> None:
    caller = await Caller.of(running)
    caller.post("/v1/flood")
    await running.entered.wait()
    other = await Caller.of(running)
    for _ in range(20):
        other.post("/v1/echo")
        await other.answer()
    sent = running.bodies.count(b"")
    assert sent < 400, "it goes on only as fast as it is read"
    async with asyncio.timeout(20):
        answer = await caller.reader.readuntil(b"\r\n\r\n")
        while not answer.endswith(b"0\r\n\r\n"):
            answer = answer[-10:] + await caller.reader.read(1 << 20)
    assert running.bodies.count(b"") == 400
    for each in (caller, other):
        each.close()


async def test_a_cut_answer_is_not_ended(running: Running) -> None:
    caller = await Caller.of(running)
    caller.post("/v1/cut")
    answer = await caller.rest()
    assert answer.endswith(b"data: 1\n\n\r\n")
    assert b"0\r\n\r\n" not in answer
    caller.close()


async def test_a_defect_closes_the_connection_and_no_other(running: Running) -> None:
    broken, fine = await Caller.of(running), await Caller.of(running)
    broken.post("/v1/broken")
    assert await broken.rest() == b""
    fine.post("/v1/echo")
    assert (await fine.answer())[1].endswith(b"hi")
    for each in (broken, fine):
        each.close()


async def test_a_drain_finishes_what_is_in_flight_and_asks_callers_away() -> None:
    async with server(drain_lead_s=60.0) as one:
        held, kept = await Caller.of(one), await Caller.of(one)
        held.post("/v1/held")
        await one.entered.wait()
        one.server.handle_exit(signal.SIGTERM, None)
        async with asyncio.timeout(10):
            while (b"connection", b"close") not in one.server.server_state.default_headers:
                await asyncio.sleep(0.01)
        kept.post("/v1/echo")
        one.release.set()
        for caller in (held, kept):
            answer = await caller.rest()
            assert answer.count(b"connection: close") == 1
            assert answer.endswith(b"hi")
            caller.close()
        one.server.handle_exit(signal.SIGTERM, None)
        await one.task


async def test_what_outlives_the_drain_is_told_so() -> None:
    one = Running()
    one.server.config.timeout_graceful_shutdown = 0
    async with asyncio.timeout(10):
        while not one.server.started:
            await asyncio.sleep(0)
    caller = await Caller.of(one)
    caller.post("/v1/held")
    await one.entered.wait()
    one.server.should_exit = True
    head, _, body = (await caller.rest()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert json.loads(body)["code"] == "shutting_down"
    await one.task
    caller.close()
