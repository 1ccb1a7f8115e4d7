"""Callers who ask for an answer without end and read nothing of it: each must be let go of by the deadline."""

from __future__ import annotations

import asyncio
import select
import socket
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from tests.chaos.line import GRACE_S, TOTAL_S
from tests.chaos.traffic import Ledger
from tests.hostile.wire import post

_LOOK_S = 0.1
_PAUSE_S = 0.5
_RECEIVE_BYTES = 4096


class Unread:
    """Some of them at one process."""

    def __init__(self, name: str, port: int, *, token: bytes, path: bytes, ledger: Ledger) -> None:
        self.name = name
        self._address = ("127.0.0.1", port)
        self._token = token
        self._path = path
        self._ledger = ledger

    async def run(self, count: int, stop: asyncio.Event) -> None:
        """Hold up answers until `stop`, `count` at a time."""
        await asyncio.gather(*(self._caller(stop) for _ in range(count)))

    async def _caller(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with socket.socket() as connection, suppress(OSError):  # nobody listens
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
                connection.setblocking(False)
                await self._ask(connection)
                await self._wait(connection, stop)
            await asyncio.sleep(_PAUSE_S)

    async def _ask(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, self._address)
        sent = post(
            b"id-" + uuid4().hex[:20].encode(),
            b"connection: close\r\n",
            target=self._path,
            extra=b',"stream":true,"metadata":{"for":"endless"}',
        )
        await loop.sock_sendall(connection, sent.replace(b"@token@", self._token))

    async def _wait(self, connection: socket.socket, stop: asyncio.Event) -> None:
        began = ended = time.monotonic()
        # Whether it was closed can be asked without reading.
        closed = select.poll()
        closed.register(connection, select.POLLRDHUP)
        while not closed.poll(0) and not stop.is_set():
            await asyncio.sleep(_LOOK_S)
            ended = time.monotonic()
            if ended - began > TOTAL_S + GRACE_S:
                wrong = self._ledger.strikes.judge(self.name, began, ended, "late")
                if wrong is not None and await asyncio.to_thread(_is_held, connection):
                    self._ledger.violate(f"{wrong}: they read nothing and were not let go of", ended - began)
                return
        self._ledger.endings["nothing read"] += 1


def _is_held(connection: socket.socket) -> bool:
    """Tell whether a process has the other end: what a killed one had written is the kernel's to send."""
    ours, theirs = (f"0100007F:{port:04X}" for port in (connection.getsockname()[1], connection.getpeername()[1]))
    for line in Path("/proc/net/tcp").read_text().splitlines():
        fields = line.split()
        if fields[1:3] == [theirs, ours]:
            return fields[9] != "0"  # its inode: none when no process has it
    return False
