"""A crowd of callers in a process of its own: each opens a connection, is answered once and then stays, idle.

`python -m tests.e2e.crowd PORT COUNT NAME SOURCE` reads the token from its input, says `Gathered` as a line of JSON
when all are there, and the same again, of every hundredth, for each further line. A limit of open files holds for one
process, and there are 28,000 ports from one address to another: so there are several crowds, each with a source address
of its own.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.hostile.wire import ident, identities, post

AT_ONCE = 64
_AGAIN = 100


@dataclass
class Gathered:
    """How many were answered, with 200 and their own bytes; `refused` were told to try again before, and did."""

    answered: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def ask(connection: Connection, request: bytes) -> tuple[bytes, bytes]:
    """Send a request; return the head and the body of its answer, which has a length."""
    reader, writer = connection
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
    return head, await reader.readexactly(length)


def resident_kib(*pids: int) -> int:
    """Return how much memory processes take."""
    found = [re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in pids]
    return sum(int(each[1]) for each in found if each is not None)


class Crowd:
    """The connections of this process; `name` makes the identities of their requests its own."""

    def __init__(self, port: int, token: str, name: str, source: str) -> None:
        self._port = port
        self._token = token.encode()
        self._name = name
        self._source = source
        self._open: dict[int, Connection] = {}
        self._few = asyncio.Semaphore(AT_ONCE)

    async def gather(self, count: int) -> Gathered:
        """Open `count` connections, each of which is answered."""
        told = Gathered()
        await asyncio.gather(*(self._come(number, told) for number in range(count)))
        return told

    async def ask_again(self) -> Gathered:
        """Send another request on every hundredth connection."""
        told = Gathered()
        for number in sorted(self._open)[::_AGAIN]:
            self._judge(number, *await ask(self._open[number], self._request(number)), told)
        return told

    def close(self) -> None:
        """Leave, all at once."""
        for _, writer in self._open.values():
            writer.transport.abort()

    async def _come(self, number: int, told: Gathered) -> None:
        async with self._few:
            while True:
                connection = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._source, 0))
                head, body = await ask(connection, self._request(number))
                if b"too_many_connections" not in body:
                    break
                told.refused += 1
                connection[1].transport.abort()
            self._open[number] = connection
            self._judge(number, head, body, told)

    def _judge(self, number: int, head: bytes, body: bytes, told: Gathered) -> None:
        if head.startswith(b"http/1.1 200 ") and identities(body) == {ident(f"{self._name}-{number}")}:
            told.answered += 1
        else:
            told.wrong.append(f"{number}: {head!r} {body[:300]!r}")

    def _request(self, number: int) -> bytes:
        return post(ident(f"{self._name}-{number}")).replace(b"@token@", self._token)


class Loader:
    """A crowd's process, as the test sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def heard(self) -> Gathered:
        """Wait for what it says next."""
        assert self._process.stdout is not None
        return Gathered(**json.loads(self._process.stdout.readline()))

    def ask_again(self) -> Gathered:
        """Have every hundredth connection send another request."""
        assert self._process.stdin is not None
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        return self.heard()


@contextmanager
def loaders(port: int, token: str, counts: Sequence[int]) -> Iterator[list[Loader]]:
    """Run a crowd for each count; all connections are closed with the block."""
    running: list[subprocess.Popen[str]] = []
    try:
        for number, count in enumerate(counts, 1):
            command = [sys.executable, "-m", __name__, str(port), str(count), f"crowd-{number}", f"127.0.{number}.1"]
            running.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            )
            stdin = running[-1].stdin
            assert stdin is not None
            stdin.write(token + "\n")
            stdin.flush()
        yield [Loader(each) for each in running]
    finally:
        for each in running:
            each.kill()
            each.communicate()


async def main(port: int, count: int, name: str, source: str) -> None:
    """Gather, then do as the input says."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    crowd = Crowd(port, sys.stdin.readline().strip(), name, source)
    print(json.dumps(asdict(await crowd.gather(count))), flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(asdict(await crowd.ask_again())), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]))
