"""uvicorn's HTTP/1.1 protocol, strict: what two readers could read in two ways is refused, and nothing grows unbounded.

llhttp refuses most of what is ambiguous. Refused here besides: any transfer coding but `chunked`, chunks in HTTP/1.0,
versions other than 1.0 and 1.1, no Host or two of them, expectations other than `100-continue`, CONNECT, and heads,
trailers and chunk extensions beyond their bounds (RFC 9112 sections 3.2, 6.1, 7.1; RFC 9110 sections 7.2, 10.1.1).
Trailers are dropped: merged into the headers they could carry what a proxy in front has checked (RFC 9110 section
6.5.1). An upgrade is declined by serving the request as if it had not been asked for (section 7.8).

A refusal never overtakes: it is written behind the answers to the requests that came before it.
"""

from __future__ import annotations

import asyncio
import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.proxy.channel import length_of
from gateway.telemetry import new_request_id

if TYPE_CHECKING:
    from gateway.known_head import KnownHead
    from gateway.proxy.channel import HeaderList

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 200
MAX_TARGET_BYTES: Final = 8 * 1024
LINGER_S: Final = 2.0
KEPT_HEAD_BYTES: Final = 4 * 1024
"""A head beyond this is not kept for the next request: ten thousand idle callers may have sent 64 KiB each."""
_JUDGED: Final = frozenset({b"host", b"expect", b"transfer-encoding"})
_HOST: Final = re.compile(rb"[A-Za-z0-9.\-_~:\[\]%!$&'()*+,;=]*")


class Refusal(NamedTuple):
    """The problem document that ends a connection."""

    status: int
    code: str
    detail: str
    hint: str
    retry_after_s: int | None = None

    def answer(self) -> bytes:
        """Write it as a whole HTTP answer."""
        request_id, title = new_request_id(), HTTPStatus(self.status).phrase
        document = {
            "type": f"urn:llm-proxy:problem:{self.code}",
            "title": title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "hint": self.hint,
            "request_id": request_id,
        }
        body = json.dumps(document).encode()
        again = "" if self.retry_after_s is None else f"retry-after: {self.retry_after_s}\r\n"
        head = (
            f"HTTP/1.1 {self.status} {title}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nx-llm-proxy-request-id: {request_id}\r\n{again}connection: close\r\n\r\n"
        )
        return head.encode() + body


MALFORMED: Final = Refusal(
    400, "malformed_http", "These bytes are not a valid HTTP/1.1 request.", "Use an HTTP library."
)
_HOST_WRONG: Final = Refusal(400, "malformed_http", "The request needs exactly one valid Host header.", MALFORMED.hint)
_CODING: Final = Refusal(
    400, "malformed_http", "The only transfer coding is chunked, in HTTP/1.1.", "Send a Content-Length."
)
_VERSION: Final = Refusal(505, "version_not_supported", "This port speaks HTTP/1.0 and HTTP/1.1.", "Use HTTP/1.1.")
_EXPECTATION: Final = Refusal(
    417, "expectation_failed", "The only expectation that is met is 100-continue.", "Leave out the Expect header."
)
_TARGET: Final = Refusal(
    414, "target_too_long", f"The request target is longer than {MAX_TARGET_BYTES} bytes.", "Shorten it."
)
_HEAD: Final = Refusal(
    431,
    "head_too_large",
    f"The headers are longer than {MAX_HEAD_BYTES // 1024} KiB or more than {MAX_HEADERS}.",
    "Send fewer and shorter ones.",
)


class _HeadRefused(Exception):
    """Leaves the parser's callback."""


class JudgedHead:
    """Header lines as they came, in good order; `length_at` is the place of `content-length` in them, -1 without one.

    `known` are their bytes together with a target, once it was `tried` whether they are written as most are.

    Who keeps a connection mostly sends the same lines again, but for the length: then they are neither judged again
    nor `read`, which is what the data path has made of them. The next head that differs takes the place of this one.
    """

    __slots__ = (
        "_after", "_before", "coded", "expects_continue", "hosts", "is_kept", "known", "length_at", "lines", "read",
        "tried",
    )  # fmt: skip

    def __init__(self, lines: HeaderList, length_at: int) -> None:
        self.lines = lines
        self.length_at = length_at
        self._before, self._after = lines[:length_at], lines[length_at + 1 :]
        self.hosts = 0
        self.coded = self.expects_continue = False
        self.is_kept = sum(len(name) + len(value) for name, value in lines) <= KEPT_HEAD_BYTES
        self.read: Any = None
        self.known: KnownHead | None = None
        self.tried = False

    def is_said_again(self, lines: HeaderList) -> bool:
        """Tell whether `lines` say the same, whatever length they tell."""
        at, known = self.length_at, self.lines
        if at < 0:
            return lines == known
        if len(lines) != len(known) or lines[at][0] != known[at][0]:
            return False
        return lines[:at] == self._before and lines[at + 1 :] == self._after

    def length_in(self, lines: HeaderList) -> int | None:
        """Return the length that `lines` tell, which say the same as these."""
        return length_of(lines[self.length_at][1]) if self.length_at >= 0 else None


def lowered(lines: HeaderList) -> HeaderList:
    """Return headers with their names in lower case, as ASGI and the data path want them."""
    return [(name.lower(), value) for name, value in lines]


class StrictProtocol(HttpToolsProtocol):
    """One caller's connection; see the module for what it refuses."""

    cycle: Any
    """The request read last: uvicorn's own, or what stands in for it; None before the first."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection."""
        super().connection_made(transport)
        self.in_head = True
        self.overhead = self.last_read = self.head_read = 0
        self.declines = self.lingers = False
        self.lines: HeaderList = []
        self.head: JudgedHead | None = None
        self.refusal: Refusal | None = None
        self.why = MALFORMED

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the connection is about to end."""
        if self.refusal is not None or self.lingers:
            return
        self.last_read = len(data)
        self.overhead += self.last_read
        self.head_read += self.last_read
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")
        else:
            # Bytes that lead to no body and to no end of a head: a head, trailers or a chunk extension that grows.
            if self.overhead > MAX_HEAD_BYTES and not self.lingers:
                self.refuse(_TARGET if self.in_head and not self.lines else _HEAD)

    def begin_head(self) -> None:
        """Start judging a request head."""
        self.in_head = True
        self.overhead = 0
        self.head_read = self.last_read  # at most: the read in which it begins may hold other things before it
        self.declines = False
        self.lines = []

    def on_message_begin(self) -> None:
        """Start a request head."""
        self.begin_head()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; a trailer, which comes after `end_head`, is never looked at."""
        self.lines.append((name, value))

    def judge(self, lines: HeaderList) -> JudgedHead:
        """Judge the lines of a head that was not sent before."""
        names = [name.lower() for name, _ in lines]
        head = JudgedHead(lines, names.index(b"content-length") if b"content-length" in names else -1)
        for name, (_, value) in zip(names, lines, strict=True):
            if name not in _JUDGED:
                continue
            if name == b"host":
                head.hosts += 1
                if head.hosts > 1 or not _HOST.fullmatch(value):
                    self.stop(_HOST_WRONG)
            elif name == b"transfer-encoding":
                head.coded = True
                if value.strip(b" \t").lower() != b"chunked":
                    self.stop(_CODING)
            elif value.lower() == b"100-continue":
                head.expects_continue = True
            else:
                self.stop(_EXPECTATION)
        return head

    def stop(self, refusal: Refusal) -> None:
        """Leave the parser, to refuse what it reads."""
        self.why = refusal
        raise _HeadRefused

    def end_head(self) -> HeaderList | None:
        """Judge the whole head and return its lines; None when it is read again without its wish for an upgrade."""
        parser, lines, head = self.parser, self.lines, self.head
        if head is None or not head.is_said_again(lines):
            head = self.head = self.judge(lines)
        version = parser.get_http_version()
        if version != "1.1":
            if version != "1.0":
                self.stop(_VERSION)
            if head.coded:
                self.stop(_CODING)
        elif not head.hosts:
            self.stop(_HOST_WRONG)
        if len(self.url) > MAX_TARGET_BYTES:
            self.stop(_TARGET)
        if len(lines) > MAX_HEADERS or (
            self.head_read > MAX_HEAD_BYTES
            and sum(len(name) + len(value) + 4 for name, value in lines) > MAX_HEAD_BYTES
        ):
            self.stop(_HEAD)
        if parser.should_upgrade():
            if parser.get_method() == b"CONNECT":
                self.stop(MALFORMED)
            self.declines = True
            return None
        # RFC 9110 section 10.1.1: HTTP/1.0 does not know interim answers, who expects one there is not told.
        self.expect_100_continue = head.expects_continue and version == "1.1"
        self.overhead = 0
        self.lines = []  # for trailers, which the lines of a judged head must not get
        return lines

    def _decline(self, rest: bytes) -> None:
        """Read the request again without its `Upgrade`: the parser takes what follows its head for another protocol."""
        lines = b"".join(b"%b: %b\r\n" % header for header in self.lines if header[0].lower() != b"upgrade")
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (self.parser.get_method(), self.url, lines)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.overhead = 0
        StrictProtocol.data_received(self, head + rest)

    def on_headers_complete(self) -> None:
        """Begin the request when its head is in order."""
        lines = self.end_head()
        if lines is not None:
            self.headers += lowered(lines)
            super().on_headers_complete()
            self.in_head = False

    def on_body(self, body: bytes) -> None:
        """Hand on bytes of a request's body."""
        self.overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take in the end of a request; what comes next belongs to another."""
        if self.declines:
            return
        self.in_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no request, or one that was refused while it was parsed."""
        del msg
        self.refuse(self.why)

    def refuse(self, refusal: Refusal, *, lingering: bool = True) -> None:
        """End the connection with `refusal`, behind the answers that are due before it; no more is read."""
        cycle, queued = self.cycle, self.pipeline
        if self.in_head:
            is_due = cycle is None or cycle.response_complete
        else:
            is_due = not queued or queued[0][0] is not cycle
            if not is_due:
                queued.popleft()  # its body is bad: it is never begun
            elif cycle.response_started:
                self.transport.close()
                return
        self.refusal = refusal
        if is_due:
            self.write_refusal(lingering=lingering)

    def write_refusal(self, *, lingering: bool = True) -> None:
        """Write the refusal that is due now, and end the connection."""
        if self.refusal is not None:
            self.transport.write(self.refusal.answer())
        self.hang_up(lingering=lingering)

    def hang_up(self, *, lingering: bool) -> None:
        """End our direction after what was written, and the caller's a moment later.

        Closing with bytes unread resets the connection, and the caller may lose the answer with it (RFC 9112 section
        9.6).
        """
        if not lingering or self.lingers or self.transport.is_closing():
            self.transport.close()
            return
        self.lingers = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)
