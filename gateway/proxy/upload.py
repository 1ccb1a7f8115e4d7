"""A request body that is relayed while it comes in."""

from __future__ import annotations

from collections.abc import AsyncIterator

from gateway.proxy.channel import Channel
from gateway.proxy.faults import BodyTooLarge
from gateway.proxy.form_model import ModelWatch


class Upload:
    """A body relayed while it arrives: `head` was read already, the rest comes from the caller. A `BodySource`."""

    def __init__(self, head: bytes, channel: Channel, length: int | None, max_bytes: int) -> None:
        self._head = head
        self._channel = channel
        self._max_bytes = max_bytes
        self.length = length

    async def __aiter__(self) -> AsyncIterator[bytes]:
        sent = len(self._head)
        watch = ModelWatch(self._head)
        yield self._head
        while chunk := await self._channel.receive():
            sent += len(chunk)
            if sent > self._max_bytes:
                raise too_large(self._max_bytes)
            watch.check(chunk)
            yield chunk


def too_large(bound: int) -> BodyTooLarge:
    """Give what is raised for a body above `bound` bytes."""
    return BodyTooLarge(
        f"The request body is larger than {bound // 1024} KiB.",
        hint="Send less, or ask the operators to raise the bound.",
    )
