"""Keeps a process within its limit of open files: what it leaves is shared between callers and providers at the start.

A process that runs out fails where it hurts: libuv closes callers that it cannot take without an answer, and no
provider, database or certificate can be opened any more. So the bounds that are checked (callers are answered 503,
requests wait for a provider connection) are set low enough that this limit is never met.
"""

from __future__ import annotations

import logging
import resource
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from auth.errors import Fault

if TYPE_CHECKING:
    from gateway.settings import Settings

log = logging.getLogger(__name__)

LINGERING: Final = 32
"""Refused callers that are waited for at once, until they have read why."""
_OWN: Final = 128
"""Listeners, logs, spool, certificates, name resolution, connections being tried, the control plane's own calls."""
_LEAST: Final = 32
_MOST: Final = 1_048_576
"""What "unlimited" is taken for: Linux's own default for the most that a process may have."""


class TooFewFiles(Fault):
    """The process may open too few files to serve anybody."""

    code = "too_few_files"


class Sockets(NamedTuple):
    """How many connections a process may hold to callers and to providers."""

    callers: int
    upstream: int


def share_out(limit: int, wanted: Sockets, *, own: int) -> Sockets:
    """Give what of `wanted` fits into `limit` open files when the process needs `own` for itself.

    Where both do not fit, each has at least half of what is there: a request in flight is one of either kind. Raises
    `TooFewFiles` when next to nothing is left.
    """
    room = limit - own
    if room < _LEAST:
        raise TooFewFiles(
            f"This process may open {limit} files; it needs {own + _LEAST} at least.",
            hint="Raise the hard limit: ulimit -n 65536, LimitNOFILE=65536 (systemd), --ulimit nofile=65536 (Docker).",
        )
    upstream = min(wanted.upstream, max(room // 2, room - wanted.callers))
    return Sockets(min(wanted.callers, room - upstream), upstream)


def allow_files() -> int:
    """Raise this process's soft limit of open files to the hard one; give what may be opened then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST if hard == resource.RLIM_INFINITY else hard
    if soft in (most, resource.RLIM_INFINITY):
        return most
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # macOS says "unlimited" and means less
        return soft
    return most


def within_files(settings: Settings, limit: int) -> Settings:
    """Lower the connection bounds of `settings` to what fits into `limit` open files, and say so in the log."""
    wanted = Sockets(settings.max_connections, settings.max_upstream_connections)
    fits = share_out(limit, wanted, own=_OWN + LINGERING + 2 * settings.database_pool_size)
    if fits != wanted:
        log.warning(
            "the limit of open files leaves room for fewer connections than configured: raise it (ulimit -Hn)",
            extra={
                "open_files": limit,
                "max_connections": fits.callers,
                "configured_max_connections": wanted.callers,
                "max_upstream_connections": fits.upstream,
                "configured_max_upstream_connections": wanted.upstream,
            },
        )
    return replace(settings, max_connections=fits.callers, max_upstream_connections=fits.upstream)
