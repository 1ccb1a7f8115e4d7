"""Reads an opened answer to its end and gives its lease back, whatever happens on the way."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from gateway.balancing.outcome import OutcomeKind, TokenUsage
from gateway.upstream.chunks import chunks
from gateway.upstream.classify import classify_event
from gateway.upstream.dispatch import Answer
from gateway.upstream.errors import UpstreamError
from llm_proxy.answers import NotUnderstood, Served, Usage
from llm_proxy.engine import Opened
from llm_proxy.errors import ProviderError
from llm_proxy.events import MAX_BODY_BYTES, EventReader, EventTooLong, UsageReader, is_last
from llm_proxy.failures import broken_off, provider_error

T = TypeVar("T")
ERROR_BYTES = 64 * 1024
"""How much of an error's body is read."""
AFTER_LAST_S = 1.0
"""After the last event the connection may take so long to become free; then it is closed instead."""


async def read_whole(opened: Opened, decode: Callable[[bytes, Served, TokenUsage | None], T]) -> T:
    """Read a plain answer and decode it; raises the provider's error if it is one."""
    answer = opened.answer
    async with answer:
        await raise_if_error(opened)
        try:
            body = b"".join([chunk async for chunk in chunks(answer)])
        except UpstreamError as error:
            raise broken_off(error, partial=False) from None
        usage = UsageReader()
        if len(body) <= MAX_BODY_BYTES:
            usage.feed(body)
        answer.close(usage.reported)
    try:
        return decode(body, opened.served, usage.reported)
    except NotUnderstood as error:
        raise _not_understood(opened, str(error)) from None


async def raise_if_error(opened: Opened) -> None:
    """Raise the provider's own error if that is what the answer is."""
    answer = opened.answer
    if answer.kind is OutcomeKind.OK:
        return
    body = b""
    try:
        while len(body) < ERROR_BYTES and (chunk := await answer.read()):
            body += chunk
    except UpstreamError as error:
        raise broken_off(error, partial=False) from None
    answer.close()
    if answer.streaming:
        body = next((data for _, data in EventReader().feed(body + b"\n\n")), body)
    raise provider_error(
        answer.kind,
        answer.status,
        body,
        headers=answer.headers,
        now_unix=time.time(),
        key=opened.key.name,
        provider=opened.key.provider,
        secret=opened.key.secret,
    )


async def drain(answer: Answer) -> None:
    """Read what follows the last event, which is the end of the body, so that the connection can be used again."""
    try:
        async with asyncio.timeout(AFTER_LAST_S):
            while await answer.read():
                pass
    except (TimeoutError, UpstreamError):
        return  # every event is here: what the connection does now concerns nobody


class Events(Generic[T]):
    """The events of one streamed answer. One reader calls `next`; `close` may come at any time, also twice."""

    def __init__(
        self, opened: Opened, decode: Callable[[str, bytes, TokenUsage | None], T], est_input_tokens: int
    ) -> None:
        self.served = opened.served
        self._opened = opened
        self._decode = decode
        self._est_input_tokens = est_input_tokens
        self._reader = EventReader()
        self._usage = UsageReader()
        self._ready: deque[tuple[str, bytes]] = deque()
        self._ended = False

    @classmethod
    async def begin(
        cls, opened: Opened, decode: Callable[[str, bytes, TokenUsage | None], T], est_input_tokens: int
    ) -> Events[T]:
        """Start reading; raises the provider's error, also when the answer is no stream."""
        try:
            await raise_if_error(opened)
            if not opened.answer.streaming:
                raise _not_understood(opened, "it is no event stream")
        except BaseException:
            opened.answer.close(aborted=True)
            raise
        return cls(opened, decode, est_input_tokens)

    @property
    def usage(self) -> Usage | None:
        """What was reported so far."""
        return Usage.of(self._usage.reported)

    async def next(self) -> T | None:
        """Return the next event, None at the end; raises what broke the stream off."""
        try:
            event = await self._next_event()
            if event is None:
                return None
            name, data = event
            if name == "error" or b'"error"' in data:
                self._raise_error_event(name, data)
            return self._decode(name, data, self._usage.feed(data))
        except UpstreamError as error:
            self._ended = True
            raise broken_off(error, partial=self._usage.events > 0) from None
        except (NotUnderstood, EventTooLong) as error:
            self.close()
            raise _not_understood(self._opened, str(error)) from None
        except BaseException:
            self.close()
            raise

    async def _next_event(self) -> tuple[str, bytes] | None:
        while self._ready or not self._ended:
            if self._ready:
                event = self._ready.popleft()
                if is_last(*event) and not self._ended:
                    await drain(self._opened.answer)
                    self._settle()
                if event[1] != b"[DONE]":
                    return event
                continue
            chunk = await self._opened.answer.read()
            if chunk:
                self._ready.extend(self._reader.feed(chunk))
            elif (last := self._reader.rest()) is not None:
                self._ready.append(last)
            else:
                self._settle()
        return None

    def _settle(self) -> None:
        self._ended = True
        self._opened.answer.close(self._usage.settled(self._est_input_tokens))

    def _raise_error_event(self, name: str, data: bytes) -> None:
        kind = classify_event(data)
        if kind is OutcomeKind.OK and name == "error":
            kind = OutcomeKind.SERVER_ERROR
        if kind is OutcomeKind.OK:
            return
        self._ended = True
        answer, key = self._opened.answer, self._opened.key
        answer.close(error=kind)
        raise provider_error(kind, answer.status, data, key=key.name, provider=key.provider, secret=key.secret)

    def close(self) -> None:
        """End the stream early: the connection is closed, the lease given back with what was used until then."""
        if not self._ended:
            self._ended = True
            self._opened.answer.close(self._usage.settled(self._est_input_tokens), aborted=True)


def _not_understood(opened: Opened, detail: str) -> ProviderError:
    return ProviderError(
        f"{opened.key.provider} answered {opened.answer.status} with something that is not understood: {detail}",
        status=opened.answer.status,
        body="",
        key=opened.key.name,
        provider=opened.key.provider,
    )
