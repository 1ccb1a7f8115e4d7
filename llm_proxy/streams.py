"""Streamed answers as iterators: `for chunk in stream`, or `async for chunk in stream`."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Generic, Self, TypeVar

from llm_proxy.answers import Attempt, Usage
from llm_proxy.portal import Portal
from llm_proxy.reading import Events

T = TypeVar("T")


class _Named(Generic[T]):
    """Who answers, known before the first event."""

    def __init__(self, events: Events[T]) -> None:
        self._events = events
        self.served = events.served

    @property
    def key(self) -> str:
        """The name of the key that answers."""
        return self.served.key

    @property
    def provider(self) -> str:
        """The provider of that key."""
        return self.served.provider

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every attempt, the answering one last."""
        return self.served.attempts

    @property
    def usage(self) -> Usage | None:
        """Tokens as reported so far; most providers report them at the end, OpenAI when asked by `stream_options`."""
        return self._events.usage


class Stream(_Named[T]):
    """An iterator over a streamed answer's events, and a context manager.

    Ending the iteration early is fine: leave the `with` block or call `close`, and the connection is given up at once.
    Used by one thread at a time, which need not be the one that made it.
    """

    def __init__(self, events: Events[T], portal: Portal, owner: object) -> None:
        super().__init__(events)
        self._portal = portal
        self._owner = owner  # the portal ends with its owner, so a stream keeps it
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._closed:
            raise StopIteration
        try:
            event = self._portal.run(self._events.next)
        except BaseException:
            self._closed = True
            raise
        if event is None:
            self._closed = True
            raise StopIteration
        return event

    def close(self) -> None:
        """End the stream; calling it again does nothing."""
        if not self._closed:
            self._closed = True
            self._portal.post(self._events.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True) is False:
            self.close()


class AsyncStream(_Named[T]):
    """An asynchronous iterator over a streamed answer's events, and a context manager.

    Ending the iteration early is fine: leave the `async with` block or call `close`.
    """

    def __init__(self, events: Events[T], owner: object) -> None:
        super().__init__(events)
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._closed:
            raise StopAsyncIteration
        try:
            event = await self._events.next()
        except BaseException:
            self._closed = True
            raise
        if event is None:
            self._closed = True
            raise StopAsyncIteration
        return event

    async def close(self) -> None:
        """End the stream; calling it again does nothing."""
        if not self._closed:
            self._closed = True
            self._events.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        # The garbage collector may call this from any thread; the answer belongs to its loop.
        if getattr(self, "_closed", True) is False and not self._loop.is_closed():
            self._closed = True
            self._loop.call_soon_threadsafe(self._events.close)
