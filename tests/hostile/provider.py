"""The provider behind the corpus: reads strictly (h11), keeps every byte, answers each request by its identity."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import h11

from tests.fakes.tcp_server import TcpServer
from tests.hostile.wire import identities

SLOW_S, LASTING_S = 0.25, 3.0
EVENTS = 5


@dataclass
class Seen:
    """One request as it arrived."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""

    def header(self, name: bytes) -> bytes:
        return b",".join(value for each, value in self.headers if each == name)


@dataclass
class Wire:
    """One connection of the gateway, for a script that answers byte by byte."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    raw: bytes = b""
    served: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def depart(self) -> bool:
        """Note that the gateway has left before its answer was whole; True the first time."""
        first = not self.gone.is_set()
        self.gone.set()
        return first

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Close with RST."""
        with suppress(OSError):  # the gateway has closed it already
            connection = self.writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Wire, Seen], Awaitable[None]]


class Provider:
    """A server on a loop of its own thread. `scripts` (by identity) take the place of the good answer.

    Those of `early` begin as soon as the identity has been read, while the rest of the body may still come. `mood` is
    how all others are answered.
    """

    def __init__(self) -> None:
        self.port = 0
        self.seen: list[Seen] = []
        self._violations: list[str] = []
        self._taken = 0
        self.raw: list[bytes] = []
        self.left = 0
        self.scripts: dict[bytes, Script] = {}
        self.early: dict[bytes, Script] = {}
        self.mood: Script = good_answer
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._connections = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def take_new(self) -> list[Seen]:
        """Return the requests that came since the last call."""
        new = self.seen[self._taken :]
        self._taken += len(new)
        return new

    def take_violations(self) -> list[str]:
        """Return what the gateway sent that is no clean HTTP/1.1, since the last call."""
        found, self._violations = self._violations, []
        return found

    def wait_for_departure(self, already: int) -> None:
        """Return when the gateway has closed one more connection than `already` in the middle of an answer."""
        give_up = time.monotonic() + 10
        while self.left <= already:
            assert time.monotonic() < give_up, "the gateway holds on to a request whose caller is gone"
            time.sleep(0.01)

    # --- the server's side

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = TcpServer(self._connection, limit=1 << 20)
        self.port = await server.start("127.0.0.1", 0)
        self._ready.set()
        await self._stop.wait()
        await server.stop()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer, self._connections)
        self._connections += 1
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        try:
            with suppress(ConnectionError, asyncio.CancelledError):
                while seen := await self._request(wire, connection):
                    await self._answer(wire, seen)
                    wire.served += 1
                    if writer.transport.is_closing():
                        return
                    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        finally:
            self.raw.append(wire.raw)
            writer.transport.abort()

    async def _request(self, wire: Wire, connection: h11.Connection) -> Seen | None:
        seen: Seen | None = None
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                self._violations.append(f"{error}: {wire.raw[-300:]!r}")
                return None
            match event:
                case h11.NEED_DATA:
                    data = await wire.reader.read(65536)
                    wire.raw += data
                    if not data:
                        self.left += connection.their_state is not h11.IDLE and wire.depart()
                        return None
                    connection.receive_data(data)
                case h11.Request():
                    seen = Seen(event.method, event.target, [(bytes(n), bytes(v)) for n, v in event.headers])
                case h11.Data():
                    assert seen is not None
                    seen.body += bytes(event.data)
                    if any(identity in self.early for identity in identities(seen.body)):
                        return seen
                case h11.EndOfMessage():
                    if connection.trailing_data[0]:
                        self._violations.append(f"bytes after the request: {connection.trailing_data[0][:200]!r}")
                    assert seen is not None
                    self.seen.append(seen)
                    return seen
                case _:
                    return None

    async def _answer(self, wire: Wire, seen: Seen) -> None:
        watch = asyncio.ensure_future(self._watch(wire))
        try:
            for identity in identities(seen.body):
                script = self.early.get(identity) or self.scripts.get(identity)
                if script is not None:
                    await script(wire, seen)
                    return
            await self.mood(wire, seen)
        except ConnectionError:
            self.left += wire.depart()
            raise
        finally:
            watch.cancel()

    async def _watch(self, wire: Wire) -> None:
        """Notice that the gateway leaves while it is being answered."""
        while not wire.reader.at_eof() and wire.reader.exception() is None:
            await asyncio.sleep(0.005)
        self.left += wire.depart()
        wire.writer.transport.abort()


def good_body(seen: Seen) -> bytes:
    """Return an answer's JSON: it names the identities of the request."""
    said = " ".join(sorted(each.decode() for each in identities(seen.body)))
    message = {"role": "assistant", "content": said}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return json.dumps({"model": "m", "choices": [{"index": 0, "message": message}], "usage": usage}).encode()


def whole(body: bytes, extra: bytes = b"", status: bytes = b"200 OK") -> bytes:
    """Return a whole answer."""
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
        status, extra, len(body), body,
    )  # fmt: skip


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event_of(seen: Seen) -> bytes:
    """Return a stream's event that names the identities of the request."""
    said = " ".join(sorted(each.decode() for each in identities(seen.body)))
    return b"data: %b\n\n" % json.dumps({"model": "m", "choices": [{"delta": {"content": said}}]}).encode()


async def good_answer(wire: Wire, seen: Seen) -> None:
    """Answer as asked: plain or as a stream, at once or, for `"slow"` in the body, after a moment."""
    if b'"slow"' in seen.body:
        await asyncio.sleep(SLOW_S)
    if b'"lasting"' in seen.body:
        await asyncio.sleep(LASTING_S)
    if b'"hang"' in seen.body:
        await wire.gone.wait()
        return
    if b'"stream":true' not in seen.body:
        await wire.say(whole(good_body(seen)))
        return
    await wire.say(STREAM_HEAD)
    for _ in range(EVENTS):
        await wire.say(chunk(event_of(seen)))
        await asyncio.sleep(0.01)
    if b'"endless"' in seen.body:
        while True:
            await wire.say(chunk(event_of(seen) * 100))
            await asyncio.sleep(0)
    await wire.say(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
