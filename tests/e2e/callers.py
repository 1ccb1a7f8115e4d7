"""Callers without pause, each with one request at a time: what they were answered is noted, and checked at once."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import httpx2

from tests.hostile.wire import chat, ident, identities

PATH = "/v1/chat/completions"
_PATIENCE_S = 60.0


@dataclass
class Callers:
    """Every request has an identity, by which the provider of `tests.hostile.provider` answers."""

    client: httpx2.AsyncClient
    prefix: str = "caller"
    statuses: Counter[int] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    """Requests without an answer, by the name of the exception."""
    answered: list[str] = field(default_factory=list)
    """The request id of each whole answer of status 200."""

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._stop = asyncio.Event()

    async def call(self) -> int:
        """Send one request; return its status, 0 when it got none or no whole answer."""
        number = next(self._numbers)
        identity = ident(f"{self.prefix}-{number}")
        content = chat(identity, b',"stream":true' if number % 2 else b"")
        try:
            answer = await self.client.post(PATH, content=content, headers={"content-type": "application/json"})
        except httpx2.TransportError as error:
            self.broken[type(error).__name__] += 1
            return 0
        self.statuses[answer.status_code] += 1
        assert identities(answer.content) <= {identity}, "somebody else's bytes"
        if answer.status_code == 200:
            assert identity in answer.content
            self.answered.append(answer.headers["x-llm-proxy-request-id"])
        else:
            print(answer.status_code, answer.text)
        return answer.status_code

    @property
    def calls(self) -> int:
        """How many have ended, well or not."""
        return self.statuses.total() + self.broken.total()

    async def more(self, count: int) -> None:
        """Wait until so many more were answered with 200."""
        goal = len(self.answered) + count
        async with asyncio.timeout(_PATIENCE_S):
            while len(self.answered) < goal:
                await asyncio.sleep(0.01)

    async def _run(self) -> None:
        while not self._stop.is_set():
            if not await self.call():
                await asyncio.sleep(0.02)  # nobody listens: the machine is needed by who will

    @asynccontextmanager
    async def running(self, count: int) -> AsyncIterator[None]:
        """Call, so many at a time, until the block ends and all are answered."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                tasks.create_task(self._run())
            try:
                yield
            finally:
                self._stop.set()


async def times_recorded(owner_url: str, answered: list[str]) -> Counter[int]:
    """Wait until each of `answered` has a usage row; count how many there are of each, times → requests."""
    connection = await asyncpg.connect(owner_url)
    query = (
        "select count(request_id) as times from unnest($1::text[]) asked"
        " left join usage_event on request_id = asked group by asked"
    )
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while await connection.fetchval(f"select 0 in ({query})", answered):
                await asyncio.sleep(0.1)
        return Counter(row["times"] for row in await connection.fetch(query, answered))
    finally:
        await connection.close()
