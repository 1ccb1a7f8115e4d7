"""Names to addresses by the system's resolver, so that a name whose servers are silent holds up no other.

An event loop looks names up in a few threads (libuv in four, asyncio in about as many), and a look-up that nobody waits
for any more keeps its thread until the system gives up, which takes ten seconds and more: a handful of requests to one
silent name would stop the connections to all other providers. So each look-up has a thread of its own here, and who
asks for a name that is being looked up waits for that look-up.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread
from typing import Final

AT_ONCE: Final = 64
"""So many names are looked up at a time at most."""

LookUp = Callable[[str, int], Sequence[str]]
Found = Sequence[str] | OSError | ValueError


def system_look_up(host: str, port: int) -> Sequence[str]:
    """Resolve with the system's resolver, in its order (RFC 6724); blocks."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(entry[4][0]) for entry in found]


class Names:
    """A `connect.Resolver`. Who gives up waiting takes the look-up from nobody else."""

    def __init__(self, look_up: LookUp = system_look_up, *, at_once: int = AT_ONCE) -> None:
        self._look_up = look_up
        self._at_once = asyncio.Semaphore(at_once)
        self._running: dict[tuple[str, int], asyncio.Task[Found]] = {}

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses; OSError or UnicodeError when there are none to be had."""
        key = (host, port)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._find(host, port), name="look-up of a name")
            task.add_done_callback(lambda _: self._running.pop(key, None))
        found = await asyncio.shield(task)
        if isinstance(found, Exception):
            # One for each who asked: its traceback leads to frames, which must not hold it (see `connect.race`).
            raise type(found)(*found.args)
        return found

    async def _find(self, host: str, port: int) -> Found:
        loop = asyncio.get_running_loop()
        async with self._at_once:
            answer: asyncio.Future[Found] = loop.create_future()

            def tell(found: Found) -> None:
                if not answer.done():
                    answer.set_result(found)

            def run() -> None:
                found: Found
                try:
                    found = self._look_up(host, port)
                except (OSError, ValueError) as error:
                    found = error.with_traceback(None)
                with suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(tell, found)

            try:
                # A daemon: no process waits at its end for a server that is silent.
                Thread(target=run, name="look-up of a name", daemon=True).start()
            except RuntimeError as error:
                return OSError(f"no thread for a look-up: {error}")
            return await answer
