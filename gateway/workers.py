"""Several processes behind one listening socket: starts them, replaces one that dies, ends and renews them in order.

The socket is bound here and inherited, so the kernel's queue outlives any worker: no connection is refused while one
dies or is replaced. Each worker starts from a fresh interpreter (a fork would share the state of random generators).

| signal        | what happens                                                                                  |
|---------------|-----------------------------------------------------------------------------------------------|
| SIGTERM       | all workers drain: `/readyz` turns 503, after the lead time no new connections, then the rest |
| SIGINT        | the same without the lead time; a second signal ends requests in flight                       |
| SIGHUP        | one after the other, workers are replaced: the new one is ready before the old one drains     |

A worker accepts callers once it is ready, as `/readyz` has it; while none is ready one of them answers for all. One
that dies is started again, at once the first time, then after pauses that double up to half a minute; one that has
lived a minute starts anew. One whose supervisor dies drains by itself. What is done when is decided in `gateway.crew`.
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
from math import inf
from pathlib import Path
from typing import Final

from auth.errors import Fault
from gateway.crew import END_S, REAP_S, Accept, Action, Crew, Note, Phase, Send, Start
from gateway.last_resort import end_within

log = logging.getLogger(__name__)

UP: Final = b"u"
READY: Final = b"r"
"""What a worker tells its supervisor, a byte each."""
ACCEPT: Final = b"a"
LEAVE_OFF: Final = b"l"
"""What the supervisor tells a worker that is not ready."""


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


@dataclass(slots=True)
class _Running:
    """A worker's process and what belongs to it."""

    process: Process
    ours: socket.socket
    index: int
    tasks: list[asyncio.Task[None]]
    gone: bool = False


class Supervisor:
    """Keeps `count` workers over `listening`; `run` until a signal. Times as in the settings, in seconds."""

    def __init__(
        self,
        listening: socket.socket,
        count: int,
        *,
        data_path: bool,
        control: bool,
        lead_s: float,
        drain_s: float,
    ) -> None:
        self._listening = listening
        self._data_path = data_path
        self._control = control
        self._bound_s = lead_s + drain_s + END_S + REAP_S
        self._crew = Crew(count, lead_s=lead_s, drain_s=drain_s)
        self._running: dict[int, _Running] = {}
        self._happened = asyncio.Event()

    async def run(self) -> None:
        """Supervise; raises `WorkersFailed` when no worker ever comes up."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._signalled, number)
        with tempfile.TemporaryDirectory(prefix="llm-proxy-", ignore_cleanup_errors=True) as directory:
            while not self._crew.is_over(loop.time()):
                self._happened.clear()
                if self._crew.is_ending:
                    # From here on only those that still accept keep the address open.
                    self._listening.close()
                for action in self._crew.step(loop.time()):
                    await self._do(action, directory)
                self._running = {worker: each for worker, each in self._running.items() if not each.gone}
                wakes_at = self._crew.wakes_at()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(wakes_at if wakes_at < inf else None):
                        await self._happened.wait()
        if self._crew.has_failed:
            raise WorkersFailed(
                "No worker could be started.", hint="The log says why; `llm-proxy config check` may too."
            )

    def _signalled(self, number: signal.Signals) -> None:
        if number is not signal.SIGHUP and not self._crew.is_ending:
            end_within(self._bound_s)
        self._crew.signalled(number, asyncio.get_running_loop().time())
        self._happened.set()

    async def _do(self, action: Action, directory: str) -> None:
        if isinstance(action, Start):
            try:
                await self._start(action, directory)
            except OSError as error:
                log.error("a worker's process could not be made", extra={"reason": repr(error)})
                self._ended(action.worker, -1)
            return
        running = self._running.get(action.worker) if action.worker is not None else None
        if isinstance(action, Note):
            known = {} if running is None else {"worker": running.index, "pid": running.process.pid}
            log.log(action.level, action.text, extra={**known, **action.extra})
        elif running is None:
            return  # it ended meanwhile
        elif isinstance(action, Send):
            with suppress(ProcessLookupError):
                running.process.send_signal(action.signal)
        elif isinstance(action, Accept):
            with suppress(OSError):
                running.ours.send(ACCEPT if action.on else LEAVE_OFF)

    async def _start(self, start: Start, directory: str) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        orders = Orders(
            index=start.place,
            listening=self._listening.fileno(),
            supervisor=theirs.fileno(),
            directory=directory,
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
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        running = self._running[start.worker] = _Running(process, ours, start.place, [])
        running.tasks += [
            asyncio.create_task(self._hear(start.worker, ours), name=f"words of worker {start.place}"),
            asyncio.create_task(self._see_off(start.worker, running), name=f"end of worker {start.place}"),
        ]

    async def _hear(self, worker: int, ours: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while word := await loop.sock_recv(ours, 1):
                self._crew.said(worker, Phase.READY if word == READY else Phase.UP)
                self._happened.set()

    async def _see_off(self, worker: int, running: _Running) -> None:
        code = await running.process.wait()
        running.tasks[0].cancel()
        with suppress(asyncio.CancelledError):
            await running.tasks[0]
        running.ours.close()
        self._ended(worker, code)

    def _ended(self, worker: int, code: int) -> None:
        if (running := self._running.get(worker)) is not None:
            running.gone = True
        self._crew.ended(worker, code, asyncio.get_running_loop().time())
        self._happened.set()


def supervise(
    listening: socket.socket, count: int, *, data_path: bool, control: bool, lead_s: float, drain_s: float
) -> None:
    """Run `count` workers over a bound socket until a signal."""
    listening.listen(4096)
    log.info("starting workers", extra={"workers": count})

    async def run() -> None:
        await Supervisor(listening, count, data_path=data_path, control=control, lead_s=lead_s, drain_s=drain_s).run()

    asyncio.run(run())


def socket_of(directory: str, index: int) -> Path:
    """Return where a worker answers its siblings."""
    return Path(directory) / f"worker-{index}.sock"
