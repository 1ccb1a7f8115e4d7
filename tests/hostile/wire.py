"""What a corpus entry is, how its bytes are sent, and how answers are read: with h11, which shares no code with us."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import h11

AUTH = b"authorization: Bearer @token@\r\n"
"""`@token@` is replaced by a good token when the bytes are sent."""
PATH = b"/v1/chat/completions"
LIMIT_S = 15.0


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for so long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Drip:
    """Send `data` in pieces of `size` with a pause between them, for as long as the gateway takes them."""

    data: bytes
    every_s: float
    size: int = 1


@dataclass(frozen=True, slots=True)
class Flood:
    """Send `piece` again and again, `times` at most, for as long as the gateway takes it."""

    piece: bytes
    times: int


@dataclass(frozen=True, slots=True)
class Until:
    """Read until `marker` has come."""

    marker: bytes


@dataclass(frozen=True, slots=True)
class Leave:
    """End the connection: `fin` in good order for our direction, `reset` at once."""

    how: Literal["fin", "reset"]


Step = bytes | Wait | Drip | Flood | Until | Leave


@dataclass(frozen=True, slots=True)
class Case:
    """One hostile caller: what it sends, the statuses it gets, how it ends.

    `then`: "open" (a further request on the same connection must get its own answer), "closed" by the gateway, or
    "gone" (the caller left). `reached` is how many of its requests the provider may see. `code` stands in the body of
    the last answer.
    """

    name: str
    script: tuple[Step, ...]
    answers: tuple[int, ...] = (200,)
    then: Literal["open", "closed", "gone"] = "open"
    reached: int = 1
    code: str = ""
    interim: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer as h11 reads it; `whole` is False when it was cut."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    whole: bool
    interim: int = 0


def ident(name: str) -> bytes:
    """Return a request's identity: it stands in the body, and its answer must carry it."""
    return b"id-" + hashlib.sha256(name.encode()).hexdigest()[:20].encode()


def chat(identity: bytes, extra: bytes = b"") -> bytes:
    """Return the JSON of a chat request."""
    return b'{"model":"m","user":"%b"%b,"messages":[{"role":"user","content":"Hello!"}]}' % (identity, extra)


def post(
    identity: bytes,
    headers: bytes = b"",
    *,
    target: bytes = PATH,
    framing: bytes | None = None,
    body: bytes | None = None,
    extra: bytes = b"",
    version: bytes = b"HTTP/1.1",
    auth: bytes = AUTH,
) -> bytes:
    """Return a chat request; `framing` replaces the Content-Length line, `headers` come before it."""
    sent = chat(identity, extra) if body is None else body
    length = b"content-length: %d\r\n" % len(sent) if framing is None else framing
    return b"POST %b %b\r\nhost: gateway\r\n%bcontent-type: application/json\r\n%b%b\r\n%b" % (
        target, version, auth, headers, length, sent,
    )  # fmt: skip


def chunked(body: bytes, size: int = 40) -> bytes:
    """Return `body` in chunks."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@dataclass
class Caller:
    """A blocking socket that keeps what it has read and says whether the other side has closed.

    `window`: how many bytes the kernel takes in its stead (`SO_RCVBUF`), 0 for as many as it likes.
    """

    port: int
    token: bytes
    window: int = 0
    received: bytes = b""
    closed: bool = False
    socket: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self.socket = socket.socket()
        if self.window:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.window)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect(("127.0.0.1", self.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self, script: tuple[Step, ...]) -> None:
        """Do the steps."""
        for step in script:
            match step:
                case bytes():
                    self.send(step)
                case Wait(seconds):
                    time.sleep(seconds)
                case Drip(data, every_s, size):
                    data = data.replace(b"@token@", self.token)
                    for at in range(0, len(data), size):
                        if not self.send(data[at : at + size]) or self.look():
                            break
                        time.sleep(every_s)
                case Flood(piece, times):
                    for _ in range(times):
                        if not self.send(piece) or self.look():
                            break
                case Until(marker):
                    give_up = time.monotonic() + LIMIT_S
                    while marker not in self.received and not self.closed:
                        assert time.monotonic() < give_up, f"{marker!r} did not come: {self.received[-300:]!r}"
                        self.read()
                case Leave(how):
                    if how == "reset":
                        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        self.socket.close()
                    else:
                        self.socket.shutdown(socket.SHUT_WR)

    def send(self, data: bytes) -> bool:
        """Send; False when the gateway has closed."""
        try:
            self.socket.sendall(data.replace(b"@token@", self.token))
        except (ConnectionError, TimeoutError):
            return False
        return True

    def look(self) -> bool:
        """Read what is there without waiting; tell whether the gateway has closed."""
        self.socket.setblocking(False)
        with suppress(BlockingIOError):
            self._take()
        self.socket.settimeout(LIMIT_S)
        return self.closed

    def read(self) -> None:
        """Wait for bytes or the end."""
        self._take()

    def _take(self) -> None:
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            data = b""
        self.received += data
        self.closed = self.closed or not data

    def read_answers(self, count: int, *, to_the_end: bool = False) -> list[Answer]:
        """Read until `count` whole answers are there, or to the end of the connection."""
        give_up = time.monotonic() + LIMIT_S
        while not self.closed:
            found = answers_in(self.received, ended=False)
            if not to_the_end and sum(answer.whole for answer in found) >= count:
                break
            assert time.monotonic() < give_up, f"the gateway neither answered nor closed: {self.received[-500:]!r}"
            self.read()
        return answers_in(self.received, ended=self.closed)

    def close(self) -> None:
        """Let go."""
        self.socket.close()


def answers_in(raw: bytes, *, ended: bool) -> list[Answer]:
    """Read all answers in `raw`, each as that to a POST; raises h11's error on what is no HTTP."""
    found = []
    rest = raw
    while rest:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        connection.send(h11.Request(method="POST", target="/", headers=[("host", "g"), ("content-length", "0")]))
        connection.send(h11.EndOfMessage())
        connection.receive_data(rest)
        if ended:
            connection.receive_data(b"")
        status, headers, body, whole, interim = 0, {}, b"", False, 0
        with suppress(*((h11.RemoteProtocolError,) if ended else ())):
            while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                match event:
                    case h11.InformationalResponse():
                        interim += 1
                    case h11.Response(status_code=status):
                        headers = {bytes(name): bytes(value) for name, value in event.headers}
                    case h11.Data(data=data):
                        body += bytes(data)
                    case h11.EndOfMessage():
                        whole = True
                        break
                    case h11.ConnectionClosed():
                        break
        if status:
            found.append(Answer(status, headers, body, whole, interim))
        if not whole:
            break
        rest = connection.trailing_data[0]
    return found


_IDENTITY = re.compile(rb"id-[0-9a-f]{20}")


def identities(raw: bytes) -> set[bytes]:
    """Return the identities that occur in `raw`."""
    return set(_IDENTITY.findall(raw))
