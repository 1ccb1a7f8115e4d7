"""Postgres in trouble. Each is seen to be by a connection of the gateway's own role, which is refused or late."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from tests.chaos.scene import Scene
from tests.chaos.world import World

_LATE_S = 0.5
SLOW_S = 0.3


async def _troubled(world: World) -> bool:
    try:
        connection = await asyncpg.connect(world.installation.environment["DATABASE_URL"], timeout=_LATE_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return True
    connection.terminate()
    return False


@asynccontextmanager
async def down(scene: Scene) -> AsyncIterator[None]:
    await scene.world.postgres.stop()
    scene.took(await _troubled(scene.world))
    yield
    await scene.world.postgres.start()


@asynccontextmanager
async def stalled(scene: Scene) -> AsyncIterator[None]:
    """It accepts, and then says nothing."""
    scene.world.postgres.flowing.clear()
    scene.took(await _troubled(scene.world))
    yield
    scene.world.postgres.flowing.set()


@asynccontextmanager
async def slow(scene: Scene) -> AsyncIterator[None]:
    """Each packet takes a third of a second."""
    scene.world.postgres.delay_s = SLOW_S
    scene.took(await _troubled(scene.world))
    yield
    scene.world.postgres.delay_s = 0.0


@asynccontextmanager
async def restarted(scene: Scene) -> AsyncIterator[None]:
    """Every connection breaks; another server process, at another port of its own, takes them again."""
    before = scene.world.postgres.server_port
    await scene.world.postgres.stop()
    await scene.world.postgres.start()
    scene.took(scene.world.postgres.server_port != before)
    yield


@asynccontextmanager
async def out_of_connections(scene: Scene) -> AsyncIterator[None]:
    """It refuses every connection of the gateway's role, after those it had are gone."""
    throw_out = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'gateway'"
    await scene.world.as_owner("alter role gateway connection limit 0", throw_out)
    scene.took(await _troubled(scene.world))
    yield
    await scene.world.as_owner("alter role gateway connection limit -1")


@asynccontextmanager
async def promoted(scene: Scene) -> AsyncIterator[None]:
    """The primary is killed; after a while its synchronous standby is promoted, and the address leads there."""
    postgres = scene.world.postgres
    async with postgres.standby() as standby:
        await standby.wait_for_it()
        await postgres.kill()
        yield
        await postgres.fail_over(standby)
        scene.took(await standby.timeline() > 1)
