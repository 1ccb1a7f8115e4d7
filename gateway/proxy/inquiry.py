"""One request as the data path carries it from step to step, and the leaving of its caller."""

from __future__ import annotations

import asyncio

from auth.details import Detail
from auth.scopes import USAGE_READ
from gateway.proxy.channel import Channel
from gateway.proxy.choice import named_pool
from gateway.proxy.explanation import NOT_ALLOWED
from gateway.proxy.head import NO_WISHES, Wishes
from gateway.proxy.record import RequestRecord
from gateway.proxy.routes import Route


class Inquiry:
    """What one request asks for; `admit` adds how far its token goes and what it asks of the gateway."""

    __slots__ = ("channel", "details", "explains", "named", "place", "record", "route", "wishes")

    def __init__(self, route: Route, channel: Channel, record: RequestRecord) -> None:
        self.route = route
        self.channel = channel
        self.record = record
        self.details: tuple[Detail, ...] = ()
        self.wishes: Wishes = NO_WISHES
        self.named: str | None = route.pool
        self.explains = False
        self.place: str | None = None
        """Where the caller was found to be, by the network that it comes from."""

    def admit(self, details: tuple[Detail, ...]) -> None:
        """Take in what the verified token is narrowed to; only now its wishes are read. Raises RequestFault."""
        self.details = details
        self.wishes = self.channel.head.wishes()
        self.named = named_pool(self.route.pool, self.wishes.pool)
        if self.wishes.explain:
            principal = self.record.principal
            self.explains = principal is not None and principal.may(USAGE_READ)
            self.record.explanation = None if self.explains else NOT_ALLOWED


class Leaver:
    """Cancels the request's own task when the caller disconnects, and remembers that it was that."""

    __slots__ = ("is_gone", "task")

    def __init__(self) -> None:
        self.is_gone = False
        self.task: asyncio.Task[object] | None = None

    def watch(self, channel: Channel) -> None:
        """From now on a caller that leaves ends the running task."""
        self.task = channel.task or asyncio.current_task()
        channel.on_gone(self.leave)

    def leave(self) -> None:
        """Take in that the caller is gone."""
        self.is_gone = True
        if self.task is not None:
            self.task.cancel()

    def stay(self) -> None:
        """Take the cancellation back: the task goes on to its own end."""
        if self.task is not None:
            self.task.uncancel()
