"""The metrics of all workers in one answer: whichever is scraped asks the others, over sockets in a private directory.

Each sample is labelled with its worker, so no count is lost in another's: a worker that is replaced begins again at 0,
which `rate()` and `increase()` take for what it is.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway.workers import socket_of

_TIMEOUT_S: Final = 3.0
"""A worker under full load gives requests their turn while it counts: with ten thousand tenants a second passes."""
_SAMPLE: Final = re.compile(r"^([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})? (.*)$")


class Siblings:
    """This worker's place among the workers of one supervisor; `scrape` gives its own metrics."""

    def __init__(self, directory: str, index: int, scrape: Callable[[], Awaitable[bytes]]) -> None:
        self._directory = directory
        self._index = index
        self._scrape = scrape
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Answer the others from now on; a predecessor in this place answers no more."""
        path = socket_of(self._directory, self._index)
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._answer, path)

    async def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        with suppress(OSError):
            writer.write(await self._scrape())
            await writer.drain()
        writer.close()

    async def metrics(self) -> bytes:
        """Return the metrics of every worker that answers in time."""
        places = await asyncio.to_thread(places_in, self._directory)
        texts = await asyncio.gather(*(self._ask(place) for place in places))
        return merge({_index(place): text for place, text in zip(places, texts, strict=True) if text})

    async def _ask(self, place: Path) -> bytes:
        if _index(place) == str(self._index):
            return await self._scrape()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(place)
                try:
                    return await reader.read(-1)
                finally:
                    writer.close()
        return b""


def places_in(directory: str) -> list[Path]:
    """Return where workers answer, by name."""
    return sorted(Path(directory).glob("worker-*.sock"))


def _index(place: Path) -> str:
    return place.stem.removeprefix("worker-")


def merge(texts: dict[str, bytes]) -> bytes:
    """Put Prometheus texts together, each sample labelled `worker`; a family stands once, with all its samples."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for worker, text in sorted(texts.items()):
        comments: list[str] = []
        samples: list[str] = []
        for line in text.decode().splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                comments, samples = families.setdefault(name, ([], []))
                if not comments:
                    comments.append(line)
            elif line.startswith("# TYPE "):
                if len(comments) < 2:
                    comments.append(line)
            elif (found := _SAMPLE.match(line)) is not None:
                labels = f'worker="{worker}"' + (f",{found[2]}" if found[2] else "")
                samples.append(f"{found[1]}{{{labels}}} {found[3]}")
    lines = [line for comments, samples in families.values() for line in (*comments, *samples)]
    return ("\n".join(lines) + "\n").encode()
