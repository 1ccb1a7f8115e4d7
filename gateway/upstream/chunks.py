"""An answer's body as an async iterator."""

from __future__ import annotations

from collections.abc import AsyncIterator

from gateway.upstream.dispatch import Answer


async def chunks(answer: Answer) -> AsyncIterator[bytes]:
    """Yield the body as it comes; raises what `Answer.read` does."""
    while data := await answer.read():
        yield data
