"""Callers who check what they get: each answer against the request's identity and deadline, all of it in one ledger."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from uuid import uuid4

from tests.chaos.line import GRACE_S, TOTAL_S, Heard, Line
from tests.chaos.strikes import Strikes
from tests.hostile.wire import chat, identities, post

_GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01",
    b"GET / HTTP/1.1\r\nhost: g\r\nx y: z\r\n\r\n",
    b"POST /v1/embeddings HTTP/1.1\r\nhost: g\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/chat/comp",
)


@dataclass
class Ledger:
    """What callers have seen: request ids that were answered whole, and everything that must not be."""

    strikes: Strikes = field(default_factory=Strikes)
    answered: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Request id of each 200 → (process, time on `clock`)."""
    endings: Counter[str] = field(default_factory=Counter)
    broken: dict[str, list[float]] = field(default_factory=dict)
    """What must not be → how long each call took that it happened to."""

    def violate(self, what: str, took_s: float = 0.0) -> None:
        """Note something that must not be."""
        self.broken.setdefault(what, []).append(took_s)

    def violations(self) -> list[str]:
        """Return what must not be, each with how often it was and how long it took."""
        return [
            f"{len(took)} × {what} (after {min(took):.1f} to {max(took):.1f} s)" for what, took in self.broken.items()
        ]

    def polite(self, process: str, began: float, ended: float, ending: str) -> None:
        """Take in how a polite call ended."""
        wrong = self.strikes.judge(process, began, ended, ending)
        if wrong is None and ended - began > TOTAL_S + GRACE_S:
            wrong = self.strikes.judge(process, began, ended, "late")
        if wrong is not None:
            self.violate(wrong, ended - began)

    def managed(self, process: str, began: float, ended: float, ending: str) -> None:
        """Take in how a management call ended."""
        if (wrong := self.strikes.judge_management(process, began, ended, ending)) is not None:
            self.violate(wrong, ended - began)


class Callers:
    """Some callers of one process, each with one request at a time; every tenth is rude."""

    def __init__(self, name: str, port: int, *, token: bytes, path: bytes, ledger: Ledger, rng: random.Random) -> None:
        self.name = name
        self._line = Line(port, token)
        self._token = token
        self._path = path
        self._ledger = ledger
        self._rng = rng

    async def run(self, count: int, stop: asyncio.Event) -> None:
        """Call until `stop`, `count` at a time."""
        await asyncio.gather(*(self._caller(stop) for _ in range(count)))
        await self._line.close()

    async def _caller(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await asyncio.sleep(self._rng.uniform(0.0, 0.2))
            if self._rng.random() < 0.1:
                with contextlib.suppress(OSError):
                    await self._be_rude()
            else:
                await self.call()

    async def call(self) -> bool:
        """Send one request; return whether it was answered well."""
        rng, ledger = self._rng, self._ledger
        identity = b"id-" + uuid4().hex[:20].encode()
        body = chat(identity, b',"stream":true' if rng.random() < 0.5 else b"")
        leaves_after = rng.randrange(3) if rng.random() < 0.1 else None
        began = time.monotonic()
        heard = await self._line.ask(b"POST", self._path, body, leaves_after)
        ended = time.monotonic()
        ledger.endings[heard.ending] += 1
        self._check(identity, heard)
        if heard.ending != "left":
            ledger.polite(self.name, began, ended, heard.ending)
        return heard.ending in {"200", "left"}

    def _check(self, identity: bytes, heard: Heard) -> None:
        whole = heard.ending in {"200", "error event"}
        if whole:
            request = heard.headers[b"x-llm-proxy-request-id"].decode()
            self._ledger.answered[request] = (self.name, time.monotonic())
        if strange := identities(heard.body) - {identity}:
            self._ledger.violate(f"{self.name}: an answer with somebody else's bytes: {strange!r}")
        if heard.ending == "200" and identity not in heard.body:
            self._ledger.violate(f"{self.name}: a whole answer without its own bytes: {heard.body[:200]!r}")

    async def _be_rude(self) -> None:
        rng = self._rng
        reader, writer = await asyncio.open_connection(self._line.origin.host, self._line.origin.port)
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
