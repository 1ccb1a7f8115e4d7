"""Small HTTP calls beside the data path: admin APIs of providers, key management services, webhooks.

They go through the upstream client, so that the guard's checks hold for them too: only checked addresses are connected
to, TLS is verified, redirects are not followed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Final
from urllib.parse import urlsplit

from auth.errors import Fault
from gateway.upstream.dispatch import Sender
from gateway.upstream.errors import UpstreamError
from gateway.upstream.guard import EgressPolicy, check_base_url
from gateway.upstream.message import Deadlines, UpstreamRequest
from tenants.sources.protocol import HttpAnswer, SourceAway, SourceRefused

MAX_ANSWER_BYTES: Final = 1 << 20
_DEADLINES: Final = Deadlines(connect_s=5.0, write_s=10.0, first_byte_s=20.0, idle_s=10.0, total_s=25.0)
_SAFE: Final = frozenset({"GET", "HEAD", "PUT", "DELETE"})
"""Idempotent methods (RFC 9110 section 9.2.2) may be sent again when a kept connection turns out to be closed."""
_FRAMING: Final = frozenset({"host", "content-length", "connection", "transfer-encoding"})


class _Once:
    """A body that is sent once only: a POST that makes a key must not be repeated behind its caller's back."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    @property
    def length(self) -> int:
        return len(self._body)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._body:
            yield self._body


class GuardedCalls:
    """Implements `tenants.sources.protocol.HttpCalls` over a connection pool; `policy` is the pool's own.

    `repeatable`: a POST may be sent again too when a kept connection turns out to be closed. A key management service
    that wraps twice has done no harm.
    """

    def __init__(self, upstream: Sender, policy: EgressPolicy, *, repeatable: bool = False) -> None:
        self._upstream = upstream
        self._policy = policy
        self._repeatable = repeatable

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        """Send one request; `SourceAway` when there is no answer, `SourceRefused` for a forbidden address."""
        parts = urlsplit(url)
        try:
            origin = check_base_url(f"{parts.scheme}://{parts.netloc}", self._policy).origin
        except Fault as refused:
            raise SourceRefused(f"{refused.public} {refused.hint}".strip()) from None
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        given = [
            (name.lower().encode(), value.encode())
            for name, value in (headers or {}).items()
            if name.lower() not in _FRAMING
        ]
        verb = method.upper()
        sent = (body or b"") if verb in _SAFE or self._repeatable else _Once(body or b"")
        request = UpstreamRequest(verb.encode(), target.encode(), given, sent)
        try:
            response = await self._upstream.send(origin, request, _DEADLINES)
            try:
                answer = bytearray()
                while chunk := await response.read():
                    answer += chunk
                    if len(answer) > MAX_ANSWER_BYTES:
                        raise SourceAway(f"the answer of {origin} is larger than {MAX_ANSWER_BYTES} bytes")
            finally:
                response.close()
        except UpstreamError as error:
            raise SourceAway(f"{origin} did not answer: {error}") from error
        except ValueError as error:
            raise SourceRefused(f"the request to {origin} cannot be written: {error}") from None
        told = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
        return HttpAnswer(response.status, told, bytes(answer))
