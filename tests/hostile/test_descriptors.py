"""A process that may open few files: whoever is one too many reads 503 and when to come back; none is cut or hung."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from gateway.descriptors import LINGERING
from tests.e2e.conftest import free_port, wait_for
from tests.hostile.conftest import Target
from tests.hostile.provider import Seen, Wire, good_body, whole
from tests.hostile.wire import Caller, ident, identities, post

FILES = 320


@dataclass
class Limited:
    """A process with a limit of open files, and what it logs."""

    port: int
    process: Popen[bytes]
    log: Path

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def told(self) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if "configured_max_connections" in line]


@contextmanager
def limited(target: Target, ulimit: str, **variables: str) -> Iterator[Limited]:
    port = free_port()
    within = ("sh", "-c", f'ulimit {ulimit}; exec "$@"', "sh")
    process, log = target.installation.spawn("gateway", port, within=within, LLM_PROXY_LOG_FORMAT="json", **variables)
    try:
        wait_for(f"http://127.0.0.1:{port}/readyz", process, log)
        yield Limited(port, process, log)
    finally:
        process.terminate()
        process.wait(30)


def test_who_is_too_many_is_told_so_and_who_is_in_is_served(target: Target) -> None:
    released = threading.Event()

    async def hold(wire: Wire, seen: Seen) -> None:
        while not released.is_set():
            await asyncio.sleep(0.01)
        await wire.say(whole(good_body(seen)))

    with limited(target, f"-n {FILES}") as small:
        (told,) = small.told()
        room = int(str(told["max_connections"]))
        assert FILES / 5 < room < FILES / 2
        inside = [Caller(small.port, target.token) for _ in range(room)]
        named = [ident(f"inside {number}") for number in range(room)]
        target.provider.scripts.update(dict.fromkeys(named, hold))
        for caller, name in zip(inside, named, strict=True):
            caller.send(post(name))
        late = [Caller(small.port, target.token) for _ in range(LINGERING)]
        for caller in late:
            caller.send(post(ident("one too many")))
        for caller in late:
            (answer,) = caller.read_answers(1, to_the_end=True)
            assert (answer.status, answer.whole, answer.headers[b"retry-after"]) == (503, True, b"1")
            assert json.loads(answer.body)["code"] == "too_many_connections"
        # Far more than there are files: nobody hangs, and none is taken in instead of another.
        flood = [Caller(small.port, target.token) for _ in range(2 * FILES)]
        for caller in flood:
            assert {answer.status for answer in caller.read_answers(1, to_the_end=True)} <= {503}
        assert small.files() < FILES
        released.set()
        for caller, name in zip(inside, named, strict=True):
            (answer,) = caller.read_answers(1)
            assert (answer.status, identities(answer.body)) == (200, {name})
        for caller in [*inside, *late, *flood]:
            caller.close()
        after = Caller(small.port, target.token)
        after.send(post(ident("when there is room again")))
        assert after.read_answers(1)[0].status == 200
        after.close()
        assert not re.search("EMFILE|Too many open files", small.log.read_text())
        for name in named:
            del target.provider.scripts[name]


def test_workers_use_what_the_hard_limit_allows(target: Target) -> None:
    with limited(target, "-Sn 256", LLM_PROXY_WORKERS="2") as small:
        pid = small.process.pid
        workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert len(workers) == 2
        for worker in workers:
            ((soft, hard),) = re.findall(r"Max open files +(\d+) +(\d+)", Path(f"/proc/{worker}/limits").read_text())
            assert soft == hard != "256"


def test_a_limit_that_leaves_nothing_is_refused_at_the_start(target: Target) -> None:
    process, log = target.installation.spawn(
        "gateway", free_port(), within=("sh", "-c", 'ulimit -n 100; exec "$@"', "sh")
    )
    assert process.wait(60) != 0
    assert "may open 100 files" in log.read_text()
    assert "ulimit -n" in log.read_text()
