"""What is sent upstream: origins, requests, deadlines, and their bytes on the wire (RFC 9112)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from gateway.upstream.body_source import BodySource

Headers = Sequence[tuple[bytes, bytes]]

_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
_TARGET = re.compile(rb"/[!\"$-;=?-\[\]-_a-z{-~]*")
"""Origin form only: no absolute URL, no space, control, backslash, quote-breaking byte or fragment (section 3.2.1)."""
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_OURS = frozenset({
    b"host", b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"proxy-connection", b"te",
    b"trailer", b"upgrade", b"expect",
})  # fmt: skip
"""Framing belongs to the connection; a caller's copy of these would let two readers see two messages."""
_KNOWN_NAMES_LIMIT = 4096
_known_names: set[bytes] = set()
_known_targets: set[bytes] = set()


class Origin(NamedTuple):
    """Where a request goes: `scheme` is http or https, `host` a lower-case name or address without brackets.

    A tuple, whose hash costs no Python: connections are looked up by it for each request.
    """

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """The Host header's value: the port is left out when it is the scheme's own, IPv6 stands in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


class UpstreamRequest(msgspec.Struct, frozen=True):
    """One request: `target` in origin form, `headers` without the framing fields and Host, which the pool writes.

    `fixed` is a block made once by `header_block` (credential and constant headers) and copied as it stands.
    """

    method: bytes
    target: bytes
    headers: Headers = ()
    body: bytes | BodySource = b""
    fixed: bytes = b""

    @property
    def replayable(self) -> bool:
        """Tell whether the request can be sent a second time."""
        return isinstance(self.body, bytes)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds an attempt may take in each phase; `total_s` bounds them all together, from the send.

    `connect_s` covers waiting for a free connection, name resolution, TCP, TLS and the egress proxy. `write_s` is the
    longest time without progress in sending, `first_byte_s` runs from the last byte sent to the answer's head (models
    may think for minutes), `idle_s` between two reads of the answer.
    """

    connect_s: float = 5.0
    write_s: float = 30.0
    first_byte_s: float = 300.0
    idle_s: float = 120.0
    total_s: float = 900.0


def _check_name(name: bytes) -> None:
    lowered = name.lower()
    if lowered in _OURS:
        raise ValueError(f"header {lowered.decode()} is written by the connection, not by its caller")
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"not a header name: {name[:40]!r}")
    if len(_known_names) < _KNOWN_NAMES_LIMIT:
        _known_names.add(name)


def _check_target(target: bytes) -> None:
    if not _TARGET.fullmatch(target):
        raise ValueError("the request target is not in origin form")
    if len(_known_targets) < _KNOWN_NAMES_LIMIT:
        _known_targets.add(target)


def header_block(headers: Headers) -> bytes:
    """Write headers as `name: value CRLF` lines; ValueError for a framing field or bytes that would end a line."""
    known = _known_names
    for name, _ in headers:
        if name not in known:
            _check_name(name)
    return header_lines(headers)


def header_lines(headers: Headers) -> bytes:
    """Write headers whose names are known to be good as lines; ValueError for a value that would end its line."""
    if not headers:
        return b""
    block = b"\r\n".join(map(b": ".join, headers)) + b"\r\n"
    lines = len(headers)
    # Values are not looked at one by one: a CR, LF or NUL hidden in any of them shows in this count.
    if len(block) - len(block.translate(None, b"\r\n\0")) != 2 * lines:
        raise ValueError("a header value holds CR, LF or NUL")
    return block


def request_head(request: UpstreamRequest, host_line: bytes) -> bytes:
    """Write the head of `request`; `host_line` is `Host: …CRLF`. ValueError when it could not be sent unambiguously."""
    if request.method not in _METHODS:
        raise ValueError(f"method {request.method[:20]!r} is not relayed")
    if request.target not in _known_targets:
        _check_target(request.target)
    body = request.body
    if isinstance(body, bytes):
        framing = b"content-length: %d\r\n\r\n" % len(body) if body or request.method in _WITH_BODY else b"\r\n"
    elif body.length is None:
        framing = b"transfer-encoding: chunked\r\n\r\n"
    else:
        framing = b"content-length: %d\r\n\r\n" % body.length
    return b"%b %b HTTP/1.1\r\n%b%b%b%b" % (
        request.method,
        request.target,
        host_line,
        request.fixed,
        header_block(request.headers),
        framing,
    )


_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})
