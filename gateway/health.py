"""`/livez`, `/readyz` and `/metrics` as raw ASGI: they answer the same in every kind of process."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from gateway.telemetry import Metrics

Check = Callable[[], str | None]
"""Returns None when well, else one sentence; it looks at memory only and never waits."""

PATHS: Final = frozenset({"/livez", "/readyz", "/metrics"})


class Together(Protocol):
    """Collects the metrics of all processes behind one address."""

    async def metrics(self) -> bytes:
        """Return them as text."""


class Health:
    """Answers for one process; of several workers, for the one that took the connection.

    Liveness means: the event loop turns. Readiness means: send me requests.
    Postgres being away is no reason to be unready: the data path serves from memory, and taking every replica out at
    once would turn a database outage into a total one. `readyz` shows it as a note.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._checks: dict[str, Check] = {}
        self._notes: dict[str, Check] = {}
        self._draining = False
        self._together: Together | None = None

    def speak_for(self, together: Together) -> None:
        """Answer `/metrics` for several processes."""
        self._together = together

    def require(self, name: str, check: Check) -> None:
        """Add a condition of readiness."""
        self._checks[name] = check

    def note(self, name: str, check: Check) -> None:
        """Add a condition that is shown and does not decide."""
        self._notes[name] = check

    def drain(self) -> None:
        """Turn readiness off for good."""
        self._draining = True

    def readiness(self) -> tuple[bool, Mapping[str, str]]:
        """Return whether the process is ready, and a word about each condition."""
        failing = {name: sentence for name, check in self._checks.items() if (sentence := check()) is not None}
        if self._draining:
            failing["drain"] = "The process is shutting down."
        notes = {name: sentence for name, check in self._notes.items() if (sentence := check()) is not None}
        return not failing, {**notes, **failing}

    async def __call__(
        self, scope: Mapping[str, Any], receive: Callable[..., Any], send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        """Answer GET and HEAD of one of `PATHS`."""
        del receive
        status, kind = 200, b"application/json"
        if scope["method"] not in ("GET", "HEAD"):
            status, body = 405, b'{"status":"method not allowed"}'
        elif scope["path"] == "/livez":
            body = b'{"status":"alive"}'
        elif scope["path"] == "/metrics":
            body = await self._metrics.scrape() if self._together is None else await self._together.metrics()
            kind = b"text/plain; version=0.0.4; charset=utf-8"
        else:
            ready, conditions = self.readiness()
            status = 200 if ready else 503
            body = json.dumps({"status": "ready" if ready else "not ready", "conditions": conditions}).encode()
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
