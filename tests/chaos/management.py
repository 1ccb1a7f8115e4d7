"""Managers of the tenant: they make pools and delete them, and in the end the table must say what they were told."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time

from tests.chaos.line import Line
from tests.chaos.traffic import Ledger

PATH = b"/api/v1/pools"


class Managers:
    """One manager after the other at one process: never more than one change is under way."""

    def __init__(self, name: str, port: int, *, token: bytes, ledger: Ledger, rng: random.Random) -> None:
        self.name = name
        self._line = Line(port, token)
        self._ledger = ledger
        self._rng = rng
        self._numbers = itertools.count()
        self.made: dict[str, str] = {}
        """Pools that are there for certain, name → id."""
        self.deleted: set[str] = set()
        """Pools that are gone for certain."""

    async def run(self, count: int, stop: asyncio.Event) -> None:
        """Change things until `stop`."""
        del count
        while not stop.is_set():
            await asyncio.sleep(self._rng.uniform(0.1, 0.4))
            await self.call()
        await self._line.close()

    async def call(self) -> bool:
        """Make one change; return whether it was confirmed."""
        if len(self.made) > 3:
            name = self._rng.choice(list(self.made))
            identifier = self.made.pop(name)  # nobody knows until it is confirmed
            if done := await self._ask(b"DELETE", PATH + b"/" + identifier.encode()) is not None:
                self.deleted.add(name)
            return done
        name = f"chaos-{next(self._numbers)}"
        answer = await self._ask(b"POST", PATH, json.dumps({"name": name}).encode())
        if answer is None:
            return False
        self.made[name] = json.loads(answer)["id"]
        return True

    async def _ask(self, method: bytes, path: bytes, body: bytes = b"") -> bytes | None:
        began = time.monotonic()
        heard = await self._line.ask(method, path, body)
        well = heard.ending in {"200", "201", "204"}
        self._ledger.endings["management well" if well else f"management {heard.ending}"] += 1
        self._ledger.managed(self.name, began, time.monotonic(), "200" if well else heard.ending)
        return heard.body if well else None

    def broken(self, names: set[str]) -> list[str]:
        """Return what the table says otherwise than the managers were told; `names` of the pools are in it."""
        lost, undead = sorted(self.made.keys() - names), sorted(self.deleted & names)
        found = [f"{len(lost)} pools are gone though their making was confirmed: {lost[:3]}"] if lost else []
        return [*found, *([f"{len(undead)} pools are there though deleted: {undead[:3]}"] if undead else [])]
