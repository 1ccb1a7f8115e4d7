"""Too many connections, and no descriptors left: who is in is served, who comes too soon is let go of, not hung."""

from __future__ import annotations

import asyncio
import resource
import socket
from pathlib import Path

from tests.e2e.crowd import Crowd, resident_kib
from tests.hostile.conftest import Target
from tests.hostile.wire import Caller, ident, identities, post

CROWD = 1500
KIB_EACH = 24.0


async def test_a_crowd_costs_little_each(target: Target) -> None:
    warm = Crowd(target.port, target.token.decode(), "warm", "127.0.0.1")
    assert (await warm.gather(50)).answered == 50
    warm.close()
    crowd = Crowd(target.port, target.token.decode(), "crowd", "127.0.0.1")
    before = resident_kib(target.process.pid)
    gathered = await crowd.gather(CROWD)
    held = resident_kib(target.process.pid) - before
    crowd.close()
    assert (gathered.answered, gathered.wrong) == (CROWD, [])
    print(f"{held / CROWD:.1f} KiB each")
    assert held / CROWD < KIB_EACH


def test_without_descriptors_nobody_is_lost(target: Target) -> None:
    inside = Caller(target.port, target.token)
    first = ident("a connection from before")
    inside.send(post(first))
    assert identities(inside.read_answers(1)[0].body) == {first}
    pid = target.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # Used connections to the provider are free again: what is taken away is what a new connection would need.
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(list(Path(f"/proc/{pid}/fd").iterdir())), limits[1]))
    try:
        waiting = [Caller(target.port, target.token) for _ in range(5)]  # the kernel takes them in
        late = [ident(f"a connection too many {number}") for number in range(5)]
        for caller, identity in zip(waiting, late, strict=True):
            caller.send(post(identity, b"connection: close\r\n"))
        second = ident("a request meanwhile")
        inside.send(post(second))
        assert identities(inside.read_answers(2)[1].body) == {second}, "who is in is served"
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    for caller, identity in zip(waiting, late, strict=True):
        # libuv closes what it has no descriptor for, asyncio lets it wait; neither may leave it hanging.
        answers = caller.read_answers(1)
        assert {identities(answer.body) == {identity} for answer in answers} <= {True}
        caller.close()
    inside.close()
    after = Caller(target.port, target.token)
    third = ident("a connection when there is room again")
    after.send(post(third))
    assert identities(after.read_answers(1)[0].body) == {third}
    after.close()


async def test_the_loop_is_not_busy_while_it_waits(target: Target) -> None:
    """Accepting must pause when there is no descriptor, not spin."""

    def cpu() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    pid = target.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(list(Path(f"/proc/{pid}/fd").iterdir())), limits[1]))
    try:
        with socket.create_connection(("127.0.0.1", target.port), timeout=10):
            before = cpu()
            await asyncio.sleep(1.0)
            assert cpu() - before < 60, "hundredths of a second of CPU in one second"
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
