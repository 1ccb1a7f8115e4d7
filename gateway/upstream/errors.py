"""How an attempt can fail before the provider has answered in full."""

from __future__ import annotations

from typing import Final

_UNSENT: Final = "no byte of the request was sent"


class UpstreamError(Exception):
    """An attempt that broke; the text is for the operator's log and never holds a header, a body or a credential."""


class ConnectFailed(UpstreamError):
    """No byte of the request was sent: the name, the address, the port, the certificate or the egress proxy failed."""


class AddressRefused(ConnectFailed):
    """The name leads to an address that tenants' base URLs must not reach."""


class PoolExhausted(ConnectFailed):
    """Every connection was busy for the whole connect deadline: this process, not the provider, is full."""


class UpstreamTimeout(UpstreamError):
    """A deadline passed; `phase` is one of write, upload, first_byte, idle, total."""

    def __init__(self, phase: str) -> None:
        super().__init__(f"the upstream missed the {phase} deadline")
        self.phase = phase


class UpstreamBroken(UpstreamError):
    """The connection broke or the answer violates RFC 9112.

    `stale` marks a kept-alive connection that closed before one byte of an answer came: the request was sent into a
    connection that the provider had given up, which says nothing about the provider.
    """

    def __init__(self, detail: str, *, stale: bool = False) -> None:
        super().__init__(detail)
        self.stale = stale


def mark_unsent(error: BaseException) -> None:
    """Note on a cancellation that it came before there was a connection to send on."""
    error.add_note(_UNSENT)


def is_unsent(error: BaseException | None) -> bool:
    """Tell whether `error`, or what led to it, was marked so."""
    return error is not None and (_UNSENT in getattr(error, "__notes__", ()) or is_unsent(error.__cause__))
