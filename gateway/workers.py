"""Several processes behind one listening socket: starts them, replaces one that dies, ends and renews them in order.

The socket is bound here and inherited, so the kernel's queue outlives any worker: no connection is refused while one
dies or is replaced. Each worker starts from a fresh interpreter (a fork would share the state of random generators).

| signal        | what happens                                                                                  |
|---------------|-----------------------------------------------------------------------------------------------|
| SIGTERM       | all workers drain: `/readyz` turns 503, after the lead time no new connections, then the rest |
| SIGINT        | the same without the lead time; a second signal ends requests in flight                       |
| SIGHUP        | one after the other, workers are replaced: the new one is ready before the old one drains     |

A worker that dies is started again, at once the first time, then after pauses that double up to `LONGEST_PAUSE_S`; one
that has lived `GOOD_S` starts anew. Whose supervisor dies drains by itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import Process
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from auth.errors import Fault

log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
GOOD_S: Final = 60.0
START_S: Final = 120.0
"""How long a worker may take until it serves."""
HOPELESS: Final = 3
"""So many workers in a row that never served, while none ever did: the fault is in the configuration."""
READY: Final = b"ready\n"


class WorkersFailed(Fault):
    """No worker could be started."""

    code = "workers_failed"


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told on its command line: inherited descriptors, its number, where its siblings answer."""

    index: int
    listening: int
    supervisor: int
    directory: str
    data_path: bool
    control: bool

    def encode(self) -> str:
        """Return the one argument."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def decode(cls, argument: str) -> Orders:
        """Read the one argument."""
        return cls(**json.loads(argument))


class _Worker:
    """One running worker process."""

    def __init__(self, process: Process, ours: socket.socket) -> None:
        self.process = process
        self.serves = False
        self._ours = ours

    async def is_ready(self) -> bool:
        """Wait until it serves; False when it ends or takes too long."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(START_S):
                self.serves = await loop.sock_recv(self._ours, len(READY)) == READY
                return self.serves
        except (TimeoutError, OSError):
            return False

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs; before it serves only the interpreter takes SIGINT, with a traceback."""
        if number is signal.SIGINT and not self.serves:
            number = signal.SIGTERM
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; give its exit code."""
        code = await self.process.wait()
        self._ours.close()
        return code


class Supervisor:
    """Keeps `count` workers over `listening`; `run` until a signal. `drain_s`: what each may take to end."""

    def __init__(self, listening: socket.socket, count: int, *, data_path: bool, control: bool, drain_s: float) -> None:
        self._listening = listening
        self._count = count
        self._data_path = data_path
        self._control = control
        self._drain_s = drain_s
        self._workers: dict[int, _Worker] = {}
        self._retired: set[_Worker] = set()
        self._coming: _Worker | None = None
        """The one that a roll is starting."""
        self._stopping = asyncio.Event()
        self._signals: list[signal.Signals] = []
        self._rolling: asyncio.Task[None] | None = None
        self._has_served = False
        self._failures = 0

    async def run(self) -> None:
        """Supervise; raises `WorkersFailed` when none ever serves."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._roll)
        with tempfile.TemporaryDirectory(prefix="llm-proxy-") as directory:
            self._directory = directory
            async with asyncio.TaskGroup() as group:
                for index in range(self._count):
                    group.create_task(self._keep(index), name=f"worker {index}")
            if self._rolling is not None:
                self._rolling.cancel()
            for worker in (*self._retired, *self._comes()):
                await self._see_off(worker)
        if not self._has_served and not self._signals:
            raise WorkersFailed(
                "No worker could be started.", hint="The log says why; `llm-proxy config check` may too."
            )

    async def _start(self, index: int) -> _Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        orders = Orders(
            index=index,
            listening=self._listening.fileno(),
            supervisor=theirs.fileno(),
            directory=self._directory,
            data_path=self._data_path,
            control=self._control,
        )
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gateway.worker",
                orders.encode(),
                pass_fds=(orders.listening, orders.supervisor),
            )
        finally:
            theirs.close()
        return _Worker(process, ours)

    async def _keep(self, index: int) -> None:
        """Have a worker in this place until the end."""
        loop = asyncio.get_running_loop()
        pause_s = 0.0
        while not self._stopping.is_set():
            started_at = loop.time()
            worker = self._workers[index] = await self._start(index)
            if self._signals:
                worker.signal(self._signals[-1])
            if await worker.is_ready():
                self._has_served, self._failures = True, 0
                log.info("worker serves", extra={"worker": index, "pid": worker.process.pid})
            else:
                worker.signal(signal.SIGKILL)
                self._failures += 1
            code = await worker.ended()
            while (successor := self._workers.get(index)) is not None and successor is not worker:
                # A roll has put another one in this place.
                worker, started_at = successor, loop.time()
                code = await worker.ended()
            if self._stopping.is_set():
                return
            if not self._has_served and self._failures >= HOPELESS:
                self._stopping.set()
                for other in self._workers.values():
                    other.signal(signal.SIGKILL)
                return
            pause_s = 0.0 if loop.time() - started_at >= GOOD_S else pause_s
            log.error("worker ended, starting another", extra={"worker": index, "code": code, "in_s": pause_s})
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
            pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2.0 * pause_s))

    def _end(self, number: signal.Signals) -> None:
        again = bool(self._signals)
        self._signals.append(number)
        self._stopping.set()
        # From here on only those that still accept keep the address open.
        self._listening.close()
        # One that was replaced drains already: to it the first of these signals would be its second.
        for worker in (*self._workers.values(), *self._comes(), *(self._retired if again else ())):
            worker.signal(number)

    def _comes(self) -> list[_Worker]:
        return [] if self._coming is None else [self._coming]

    def _roll(self) -> None:
        if self._stopping.is_set() or (self._rolling is not None and not self._rolling.done()):
            return
        self._rolling = asyncio.create_task(self._renew_all(), name="rolling restart")

    async def _renew_all(self) -> None:
        log.info("workers are replaced one by one")
        for index in range(self._count):
            old = self._workers.get(index)
            if old is None or self._stopping.is_set():
                continue
            new = self._coming = await self._start(index)
            if self._stopping.is_set():
                new.signal(signal.SIGTERM)
                return
            ready = await new.is_ready()
            if self._stopping.is_set():
                return  # it has been told, like all
            if not ready:
                log.error("the new worker does not start, the old ones stay", extra={"worker": index})
                new.signal(signal.SIGKILL)
                await new.ended()
                self._coming = None
                return
            self._workers[index], self._coming = new, None
            self._retired.add(old)
            # No lead time: others accept, nobody has to be told.
            old.signal(signal.SIGINT)
            await self._see_off(old)
        log.info("all workers are replaced")

    async def _see_off(self, worker: _Worker) -> None:
        try:
            async with asyncio.timeout(self._drain_s + 10.0):
                await worker.process.wait()
        except TimeoutError:
            worker.signal(signal.SIGKILL)
            await worker.process.wait()
        self._retired.discard(worker)


def supervise(listening: socket.socket, count: int, *, data_path: bool, control: bool, drain_s: float) -> None:
    """Run `count` workers over a bound socket until a signal."""
    listening.listen(4096)
    log.info("starting workers", extra={"workers": count})

    async def run() -> None:
        await Supervisor(listening, count, data_path=data_path, control=control, drain_s=drain_s).run()

    asyncio.run(run())


def socket_of(directory: str, index: int) -> Path:
    """Return where a worker answers its siblings."""
    return Path(directory) / f"worker-{index}.sock"
