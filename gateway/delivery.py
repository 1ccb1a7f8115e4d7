"""Whether a caller takes what was written to it: who does not holds a connection, and what its request has taken."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Final

_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)
_ACKED: Final = struct.Struct("=120xQ")
"""`tcpi_bytes_acked` of Linux' `struct tcp_info` (linux/tcp.h)."""
_AT_ONCE: Final = struct.pack("ii", 1, 0)
"""`struct linger`: closing throws away what was not sent."""


class Delivery:
    """What one caller has not taken yet, look by look.

    `left` are bytes that its connection still holds, `acked` all that its system has acknowledged: with megabytes in
    our kernel the former may stand still for minutes while the caller reads.
    """

    __slots__ = ("_acked", "_left", "_moved_at")

    def __init__(self, now: float, left: int, acked: int) -> None:
        self._moved_at = now
        self._left = left
        self._acked = acked

    def stands_s(self, now: float, left: int, acked: int) -> float:
        """Return since how many seconds the caller has taken nothing."""
        if left < self._left or acked != self._acked:
            self._moved_at = now
        self._left, self._acked = left, acked
        return now - self._moved_at


def acked_bytes(transport: asyncio.Transport) -> int:
    """Return how many bytes the other end has acknowledged; 0 where the system does not tell."""
    connection = transport.get_extra_info("socket")
    if connection is None or _TCP_INFO is None:
        return 0
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _ACKED.size)
    except OSError:
        return 0
    return int(_ACKED.unpack(told)[0]) if len(told) == _ACKED.size else 0


def reset(transport: asyncio.Transport) -> None:
    """End the connection and throw away what was not sent, the megabytes in the kernel too."""
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    transport.abort()
