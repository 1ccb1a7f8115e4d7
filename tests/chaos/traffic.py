"""Callers who check what they get: each answer against the request's identity and deadline, all of it in one ledger."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from uuid import uuid4

from gateway.upstream.connect import DirectConnector
from gateway.upstream.errors import UpstreamError
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.message import Deadlines, Origin, UpstreamRequest
from gateway.upstream.pool import ConnectionPool
from tests.hostile.wire import chat, identities, post

TOTAL_S = 6.0
"""The pool's total deadline: no request may take longer than this and `GRACE_S`, whatever happens."""
GRACE_S = 6.0
EXPECTED = frozenset({200, 204, 302, 408, 413, 429, 502, 503, 504})
_GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01",
    b"GET / HTTP/1.1\r\nhost: g\r\nx y: z\r\n\r\n",
    b"POST /v1/embeddings HTTP/1.1\r\nhost: g\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/chat/comp",
)


@dataclass
class Ledger:
    """What callers have seen: request ids that were answered whole, and everything that must not be."""

    answered: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Request id of each 200 → (process, time on `clock`)."""
    endings: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    under_way: dict[int, float] = field(default_factory=dict)

    def hung(self, now: float) -> list[float]:
        """Return how long the requests have been under way that should be over."""
        return [now - since for since in self.under_way.values() if now - since > TOTAL_S + GRACE_S]


class Callers:
    """Some callers of one process, each with one request at a time; every tenth is rude."""

    def __init__(self, name: str, port: int, *, token: bytes, path: bytes, ledger: Ledger, rng: random.Random) -> None:
        self.name = name
        self._origin = Origin("http", "127.0.0.1", port)
        self._token = token
        self._path = path
        self._ledger = ledger
        self._rng = rng
        self._pool = ConnectionPool(DirectConnector(EgressPolicy(allow_private=True)))
        self.frozen = False
        """While the process is stopped by a signal its callers cannot expect anything."""

    async def run(self, count: int, stop: asyncio.Event) -> None:
        """Call until `stop`, `count` at a time."""
        await asyncio.gather(*(self._caller(stop) for _ in range(count)))
        await self._pool.close()

    async def _caller(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await asyncio.sleep(self._rng.uniform(0.0, 0.2))
            if self._rng.random() < 0.1:
                with contextlib.suppress(OSError):
                    await self._be_rude()
            else:
                await self.call()

    async def call(self) -> int:
        """Send one request; return its status, 0 when none came."""
        rng, ledger = self._rng, self._ledger
        identity = b"id-" + uuid4().hex[:20].encode()
        stream = rng.random() < 0.5
        body = chat(identity, b',"stream":true' if stream else b"")
        headers = [(b"authorization", b"Bearer " + self._token), (b"content-type", b"application/json")]
        request = UpstreamRequest(b"POST", self._path, headers, body)
        leaves_after = rng.randrange(3) if rng.random() < 0.1 else None
        begun = time.monotonic()
        ledger.under_way[id(request)] = begun
        status, received, whole = 0, b"", False
        try:
            deadline = TOTAL_S + GRACE_S + 5.0
            response = await self._pool.send(
                self._origin,
                request,
                Deadlines(connect_s=deadline, first_byte_s=deadline, idle_s=deadline, total_s=deadline),
            )
            status = response.status
            reads = 0
            while data := await response.read():
                received += data
                reads += 1
                if reads == leaves_after:
                    response.close()
                    ledger.endings["left"] += 1
                    return status
            whole = True
        except UpstreamError as error:
            ending = f"{status} cut" if status else type(error).__name__
        else:
            ending = str(status)
            names = dict(response.headers)
            if status == 200:
                ledger.answered[names[b"x-llm-proxy-request-id"].decode()] = (self.name, time.monotonic())
        finally:
            del ledger.under_way[id(request)]
        took = time.monotonic() - begun
        ledger.endings[ending] += 1
        if strange := identities(received) - {identity}:
            ledger.violations.append(f"{self.name}: an answer with somebody else's bytes: {strange!r}")
        if whole and status == 200 and identity not in received and b'"error"' not in received:
            ledger.violations.append(f"{self.name}: a whole answer without its own bytes: {received[:200]!r}")
        if status and status not in EXPECTED:
            ledger.violations.append(f"{self.name}: status {status}: {received[:300]!r}")
        if took > TOTAL_S + GRACE_S and not self.frozen:
            ledger.violations.append(f"{self.name}: a request took {took:.1f} s ({ending})")
        return status

    async def _be_rude(self) -> None:
        rng = self._rng
        reader, writer = await asyncio.open_connection(self._origin.host, self._origin.port)
        sent = rng.choice(_GARBAGE)
        if rng.random() < 0.5:
            whole = post(b"id-" + uuid4().hex[:20].encode(), target=self._path)
            sent = whole.replace(b"@token@", self._token)[: rng.randrange(len(whole))]
        writer.write(sent)
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(rng.uniform(0.0, 0.3)):
                await reader.read()
        if rng.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()
        self._ledger.endings["rude"] += 1
