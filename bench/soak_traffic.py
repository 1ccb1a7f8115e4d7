"""The soak's two ends: a provider that is mostly well, and callers at a fixed rate, some of whom misbehave.

Every kind of end that a request can have comes up all the time, for what leaks is seldom the good path: whole answers,
streams, callers that leave before the head or in the stream, uploads, bad requests, providers that fail or drop the
connection and are failed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter

import httptools

from gateway.upstream.connect import DirectConnector
from gateway.upstream.errors import UpstreamError
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.message import Deadlines, Origin, UpstreamRequest
from gateway.upstream.pool import ConnectionPool

EVENTS = 20
EVENT_GAP_S = 0.1
THINKING_S = 0.2
FAILING = 0.01
"""Share of the provider's requests that end in a 500, and as many in a closed connection."""
KINDS = {
    "plain": 60,
    "large": 8,
    "stream": 24,
    "leaves in the stream": 3,
    "leaves before the head": 2,
    "upload": 1,
    "bad request": 1,
    "new connection": 1,
}
"""What callers do, in percent."""
_TEXT = "The quick brown fox jumps over the lazy dog. " * 20
_USAGE = {"prompt_tokens": 120, "completion_tokens": 200, "total_tokens": 320}
_BODY = json.dumps(
    {"id": "chatcmpl-1", "model": "gpt-4o-mini", "choices": [{"message": {"content": _TEXT}}], "usage": _USAGE}
).encode()
_PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
_FAILED = b'HTTP/1.1 500 Oops\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n{"error":"x"}'
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = b'data: {"id":"chatcmpl-1","model":"gpt-4o-mini","choices":[{"delta":{"content":"token "}}]}\n\n'
_LAST = b"data: %b\n\ndata: [DONE]\n\n" % json.dumps({"choices": [], "usage": _USAGE}).encode()


class Provider(asyncio.Protocol):
    """Streams where the body asks for it, thinks a moment where it says `slow`, and fails now and then."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._body = (self._body + data)[:300]

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        luck = self._rng.random()
        if luck < FAILING:
            self._transport.write(_FAILED)
        elif luck < 2 * FAILING:
            self._transport.close()
        elif b'"stream": true' in body:
            self._transport.write(_STREAM)
            self._event(EVENTS)
        elif b'"slow"' in body:
            asyncio.get_running_loop().call_later(THINKING_S, self._write, _PLAIN)
        else:
            self._transport.write(_PLAIN)

    def _event(self, left: int) -> None:
        if self._transport.is_closing():
            return
        if left:
            self._write(b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT))
            asyncio.get_running_loop().call_later(EVENT_GAP_S, self._event, left - 1)
        else:
            self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(_LAST), _LAST))

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


class Callers:
    """Sends `rate` requests a second, come what may (an open loop), and counts how they end."""

    def __init__(self, port: int, rate: float, rng: random.Random) -> None:
        self._origin = Origin("http", "127.0.0.1", port)
        self._rate = rate
        self._rng = rng
        self._pool = self._new_pool()
        self._running: set[asyncio.Task[None]] = set()
        self.token = ""
        self.sent = 0
        self.endings: Counter[str] = Counter()
        self.surprises: Counter[str] = Counter()

    @staticmethod
    def _new_pool() -> ConnectionPool:
        return ConnectionPool(DirectConnector(EgressPolicy(allow_private=True)))

    async def run(self, seconds: float) -> None:
        """Send until `seconds` have passed, then wait for what is under way."""
        loop = asyncio.get_running_loop()
        begun, kinds, weights = loop.time(), list(KINDS), list(KINDS.values())
        for number in range(int(seconds * self._rate)):
            wait_s = begun + number / self._rate - loop.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            (kind,) = self._rng.choices(kinds, weights)
            task = asyncio.create_task(self._call(kind))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            self.sent += 1
        if self._running:
            await asyncio.wait(self._running, timeout=60)
        if self._running:
            self.surprises["never ended"] = len(self._running)
        await self._pool.close()

    async def _call(self, kind: str) -> None:
        try:
            ending = await self._one(kind)
        except (UpstreamError, OSError) as error:
            ending = f"{kind}: {type(error).__name__}: {error}"
            self.surprises[ending] += 1
        self.endings[ending] += 1

    async def _one(self, kind: str) -> str:
        request = self._request(kind)
        pool = self._new_pool() if kind == "new connection" else self._pool
        try:
            if kind == "leaves before the head":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(THINKING_S / 2):
                        await pool.send(self._origin, request, Deadlines())
                return kind
            response = await pool.send(self._origin, request, Deadlines(first_byte_s=60, idle_s=60))
            size, reads = 0, 0
            while data := await response.read():
                size += len(data)
                reads += 1
                if kind == "leaves in the stream" and reads == EVENTS // 4:
                    response.close()
                    return kind
        finally:
            if pool is not self._pool:
                await pool.close()
        wanted = 400 if kind == "bad request" else 200
        if response.status != wanted or (wanted == 200 and size < len(_BODY)):
            self.surprises[f"{kind}: {response.status}, {size} bytes"] += 1
        return f"{kind}: {response.status}"

    def _request(self, kind: str) -> UpstreamRequest:
        headers = [(b"authorization", b"Bearer " + self.token.encode()), (b"user-agent", b"soak")]
        path, content_type = b"/v1/chat/completions", b"application/json"
        question = "x" * (8000 if kind == "large" else 400)
        body = {"model": "gpt-4o-mini", "stream": "stream" in kind, "messages": [{"role": "user", "content": question}]}
        raw = json.dumps(body).encode()
        if kind == "leaves before the head":
            raw = json.dumps({"slow": 1, **body}).encode()
        elif kind == "bad request":
            raw = b'{"model":'
        elif kind == "upload":
            path, content_type = b"/v1/audio/transcriptions", b"multipart/form-data; boundary=x"
            raw = (
                b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
                b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n%b\r\n--x--\r\n'
                % bytes(64 * 1024)
            )
        return UpstreamRequest(b"POST", path, [*headers, (b"content-type", content_type)], raw)
