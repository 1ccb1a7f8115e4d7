"""A private event loop in a thread: lets any thread call the one engine, which lives on that loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from llm_proxy.errors import BalancerClosed

T = TypeVar("T")
_CLOSED = "The balancer is closed."
_STOP_S = 5.0


class Portal:
    """Runs coroutines on its own loop for other threads, until `stop`.

    After a fork the child has no such thread: its copy must be left alone, since it shares sockets with the parent.
    """

    def __init__(self, name: str) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run what `make` gives and wait for it; interrupting the wait cancels it.

        BalancerClosed after `stop`, and for what a forked child took over from its parent (an open stream).
        """
        if self._pid != os.getpid():
            raise BalancerClosed("This belongs to the parent process.", hint="Call the balancer anew in the child.")
        with self._lock:
            if self._stopping:
                raise BalancerClosed(_CLOSED)
            future = asyncio.run_coroutine_threadsafe(make(), self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise BalancerClosed("The balancer was closed during the call.") from None
        except BaseException:
            future.cancel()
            raise

    def post(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the loop, soon; nothing happens after `stop` or in a forked child."""
        if self._pid != os.getpid():
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(callback)

    def stop(self, finish: Callable[[], Awaitable[None]]) -> None:
        """Run `finish` on the loop, cancel what is left, end the thread. Only the first call does anything."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            asyncio.run_coroutine_threadsafe(self._wind_up(finish), self._loop)
        if threading.current_thread() is not self._thread:
            self._thread.join(_STOP_S)

    async def _wind_up(self, finish: Callable[[], Awaitable[None]]) -> None:
        try:
            # Calls first: whoever waits hears that the balancer was closed, not that a connection broke.
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            async with asyncio.timeout(_STOP_S / 2):
                await finish()
        finally:
            # Once more round the loop, so that transports and waiting threads hear of it.
            self._loop.call_soon(self._loop.stop)
