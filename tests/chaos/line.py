"""How chaos calls a process: over connections that are kept, as a client library does, with every ending told apart."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.upstream.connect import DirectConnector
from gateway.upstream.errors import ConnectFailed, UpstreamError
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.message import Deadlines, Origin, UpstreamRequest
from gateway.upstream.pool import ConnectionPool

TOTAL_S = 6.0
"""The pool's total deadline: no request may take longer than this and `GRACE_S`, whatever happens."""
GRACE_S = 6.0
_PATIENCE_S = TOTAL_S + GRACE_S + 5.0
_DEADLINES = Deadlines(connect_s=_PATIENCE_S, first_byte_s=_PATIENCE_S, idle_s=_PATIENCE_S, total_s=_PATIENCE_S)


@dataclass
class Heard:
    """What came of one request. `ending`: the status, "error event", "cut", "none" (no answer), "refused", "left"."""

    ending: str = "none"
    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""


class Line:
    """Connections to one process."""

    def __init__(self, port: int, token: bytes) -> None:
        self.origin = Origin("http", "127.0.0.1", port)
        self._token = token
        self._pool = ConnectionPool(DirectConnector(EgressPolicy(allow_private=True)))

    async def ask(self, method: bytes, path: bytes, body: bytes = b"", leaves_after: int | None = None) -> Heard:
        """Send a request and read its answer, or leave after so many reads."""
        heard, reads = Heard(), 0
        headers = [(b"authorization", b"Bearer " + self._token), (b"content-type", b"application/json")]
        try:
            response = await self._pool.send(self.origin, UpstreamRequest(method, path, headers, body), _DEADLINES)
            heard.status, heard.headers = response.status, dict(response.headers)
            while data := await response.read():
                heard.body += data
                reads += 1
                if reads == leaves_after:
                    response.close()
                    heard.ending = "left"
                    return heard
        except ConnectFailed:
            heard.ending = "refused"
        except UpstreamError:
            heard.ending = "cut" if heard.status else "none"
        else:
            failed = heard.status == 200 and b'"error"' in heard.body
            heard.ending = "error event" if failed else str(heard.status)
        return heard

    async def close(self) -> None:
        """Let go of the connections."""
        await self._pool.close()
