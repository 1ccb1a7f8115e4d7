"""uvicorn's HTTP/1.1 protocol with a short way for the hot requests: inference POSTs go straight to the data path.

For those no ASGI scope, message or event is made: the request is a `RelayChannel`, served by one task. Everything else
(other paths and methods, absolute-form targets) takes uvicorn's way unchanged. Both ways share one connection: requests
that are pipelined are answered in order, whichever way each takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.deadline_protocol import DeadlineProtocol
from gateway.known_head import KnownHead, known_head
from gateway.paced_protocol import MAX_PIPELINED
from gateway.proxy.head import RequestHead
from gateway.proxy.routes import is_inference
from gateway.relay_channel import RelayChannel, Serve
from gateway.strict_protocol import JudgedHead, Refusal, lowered
from gateway.upstream.message import header_lines

if TYPE_CHECKING:
    from gateway.proxy.channel import HeaderList

log = logging.getLogger(__name__)

_SHUTTING_DOWN: Final = Refusal(503, "shutting_down", "This process is shutting down.", "Send the request again.", 1)


class RelayProtocol(DeadlineProtocol):
    """One caller's connection; `find_relay` gives what serves inference requests, None while nothing does."""

    @staticmethod
    def find_relay() -> Serve | None:
        """Give the data path's `serve`; looked up once a connection."""
        return None

    certificate_of: Callable[[str, HeaderList], str] | None = None
    """Gives `x5t#S256` of the caller's certificate, by peer address and headers, where certificates are passed on."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection."""
        self._relay = self.find_relay()
        self._serving: RelayChannel | None = None
        self._known_url = self._raw_path = self._query = b""
        self._reading = b""
        """The read that is parsed, where it begins with a message."""
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take bytes; a request whose head is known by its bytes is not parsed."""
        judged = self.head
        if judged is None or not self._is_between_messages():
            super().data_received(data)
            return
        known = judged.known
        if known is not None and (body := known.body_in(data)) is not None:
            self.heard_at = self.loop.time()
            self._serve_known(judged, known, body)
            return
        self._reading = data
        super().data_received(data)
        self._reading = b""

    def _is_between_messages(self) -> bool:
        """Tell whether the request before is over, and nothing has come of the next one."""
        cycle = self.cycle
        return (
            type(cycle) is RelayChannel
            and cycle.response_complete
            and cycle.keep_alive
            and self.waiting_since is None
            and self.in_head
            and self.refusal is None
            and not (self.pipeline or self.lingers)
        )

    def _serve_known(self, judged: JudgedHead, known: KnownHead, body: bytes) -> None:
        """Serve a request that is all here."""
        head, relay = judged.read, self._relay
        assert relay is not None
        channel = RelayChannel(
            self,
            known.raw_path,
            known.query,
            head,
            len(body),
            certificate=self._certificate(head),
            keep_alive=True,
            expects_continue=False,
            may_chunk=True,
        )
        self.cycle = channel
        if body and not channel.feed(body):
            self.flow.pause_reading()
        channel.end_body()
        self._start_relay(channel, relay)

    def on_message_begin(self) -> None:
        """Start a request head; the ASGI scope is made when it turns out to be needed."""
        self.begin_head()
        self.waiting_since = self.heard_at
        self.url = b""

    def on_headers_complete(self) -> None:
        """Decide which way the request takes, and begin to serve it or line it up."""
        lines = self.end_head()
        if lines is None:
            return
        parser, relay, judged = self.parser, self._relay, self.head
        if judged is not None and not judged.is_kept:
            self.head = None
        if relay is None or judged is None or not self._is_for_relay() or parser.get_method() != b"POST":
            self._take_the_other_way(lines)
            self.in_head = False
            return
        head: RequestHead | None = judged.read
        if head is None:
            head = judged.read = RequestHead(lowered(lines))
            may_be_known = False
        else:
            may_be_known = not judged.tried
        is_newest = parser.get_http_version() == "1.1"
        keep_alive = is_newest and parser.should_keep_alive()
        if may_be_known and keep_alive and self._reading:
            self._note_bytes(judged, lines)
        channel = RelayChannel(
            self,
            self._raw_path,
            self._query,
            head,
            judged.length_in(lines),
            certificate=self._certificate(head),
            keep_alive=keep_alive,
            expects_continue=self.expect_100_continue,
            may_chunk=is_newest,
        )
        self.in_head = False
        before, self.cycle = self.cycle, channel
        if before is None or before.response_complete:
            self._start_relay(channel, relay)
        else:
            self.pipeline.appendleft((channel, relay))  # type: ignore[arg-type]
            if len(self.pipeline) >= MAX_PIPELINED:
                self.flow.pause_reading()

    def _certificate(self, head: RequestHead) -> str:
        """Give what the request shows of the caller's certificate, "" for nothing."""
        if self.certificate_of is None:
            return self.shown
        return self.certificate_of(self.client[0] if self.client else "", head.headers)

    def _note_bytes(self, judged: JudgedHead, lines: HeaderList) -> None:
        """Know the next head like this one, which has come twice, by its bytes."""
        judged.tried = True
        if judged.length_at >= 0 and not (judged.coded or judged.expects_continue):
            judged.known = known_head(
                self._reading, self.url, lines, judged.length_at, raw_path=self._raw_path, query=self._query
            )

    def _is_for_relay(self) -> bool:
        """Tell whether the data path serves the target, which most often is that of the request before."""
        url = self.url
        if url != self._known_url:
            if not is_inference(url) or b"#" in url:
                return False
            self._known_url = url
            self._raw_path, _, self._query = url.partition(b"?")
        return True

    def _take_the_other_way(self, lines: HeaderList) -> None:
        url, expects = self.url, self.expect_100_continue
        HttpToolsProtocol.on_message_begin(self)
        self.url, self.expect_100_continue = url, expects
        self.headers += lowered(lines)
        HttpToolsProtocol.on_headers_complete(self)
        if self.beyond:
            self.cycle.keep_alive = False  # the place is for whoever asks next

    def on_body(self, body: bytes) -> None:
        """Hand on bytes of a request's body; reading stops while too many are held."""
        cycle = self.cycle
        if type(cycle) is not RelayChannel:
            super().on_body(body)
            return
        self.overhead = 0
        if not cycle.response_complete and not cycle.feed(body):
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        """Take in the end of a request."""
        cycle = self.cycle
        if type(cycle) is not RelayChannel or self.declines:
            super().on_message_complete()
        else:
            self.in_head = True
            cycle.end_body()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if type(cycle) is RelayChannel:
            self._start_relay(cycle, app)
        else:
            super()._start_asgi_task(cycle, app)

    def _start_relay(self, channel: RelayChannel, relay: Serve) -> None:
        self._serving = channel
        task = channel.task = self.loop.create_task(self._run(channel, relay))
        self.tasks.add(task)

    async def _run(self, channel: RelayChannel, relay: Serve) -> None:
        try:
            await relay(channel)
        except asyncio.CancelledError:
            if not channel.response_started and not channel.disconnected:
                self.refusal = _SHUTTING_DOWN
                self.write_refusal(lingering=False)
            raise
        except Exception as error:  # the data path answers its own faults: this one is its defect
            log.error("a request could not be answered", exc_info=error)
        finally:
            if not channel.response_complete and not channel.disconnected:
                self.transport.close()
            self.tasks.discard(channel.task)

    def write_refusal(self, *, lingering: bool = True) -> None:
        """End the connection, and with it the request whose body was refused: it has its answer."""
        super().write_refusal(lingering=lingering)
        serving = self._serving
        if serving is not None and not serving.response_complete:
            serving.lost()

    def _is_overdue(self, now: float, left: int, send_s: float) -> bool:
        """Besides: an answer ends with its own time, however steadily it is taken. It has a key's place."""
        serving = self._serving
        if serving is not None and not serving.response_complete and self.flow.write_paused and now > serving.ends_by:
            return True
        return super()._is_overdue(now, left, send_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being served, and drop those that wait behind it."""
        serving, self._serving = self._serving, None
        for waiting, _ in self.pipeline:
            waiting.disconnected = True
        self.pipeline.clear()
        if type(self.cycle) is RelayChannel:
            self.cycle = None
        super().connection_lost(exc)
        if serving is not None and not serving.response_complete:
            serving.lost()

    def defaults(self) -> Defaults:
        """Give what every answer's head has."""
        headers = self.server_state.default_headers
        kept = Defaults.kept
        if kept.headers is not headers or kept.count != len(headers):
            kept = Defaults.kept = Defaults(headers)
        return kept


class Defaults:
    """uvicorn's default headers as `lines`: the date, and `connection: close` in a drain (`closes`).

    It makes a new list each second, and a drain adds to the last one.
    """

    kept: ClassVar[Defaults]

    def __init__(self, headers: HeaderList) -> None:
        self.headers = headers
        self.count = len(headers)
        self.closes = (b"connection", b"close") in headers
        self.lines = header_lines(headers)


Defaults.kept = Defaults([])
