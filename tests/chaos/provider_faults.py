"""Two of a pool's three keys are at a provider that does what it should not; the third one's is steady."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tests.chaos.scene import Scene
from tests.hostile.provider import Script, Seen, Wire, good_answer
from tests.hostile.upstreams import UPSTREAMS

_WITHOUT_IDENTITY = {"a second answer a moment later"}
"""Answers that name no request: callers could not tell them from somebody else's."""
_HARMLESS = [case.script for case in UPSTREAMS if case.name not in _WITHOUT_IDENTITY]
_NOTICED_S = 20.0
"""How long it may take until one of its keys is tried: one that failed before is left alone for a while."""


@asynccontextmanager
async def _in_mood(scene: Scene, mood: Script) -> AsyncIterator[None]:
    async def answer(wire: Wire, seen: Seen) -> None:
        scene.took()
        await mood(wire, seen)

    scene.world.wild.mood = answer
    yield
    give_up = time.monotonic() + _NOTICED_S
    while not scene.strike.took and time.monotonic() < give_up:
        await asyncio.sleep(0.1)
    scene.world.wild.mood = good_answer


def wild(scene: Scene) -> AbstractAsyncContextManager[None]:
    """Half of its answers are out of the corpus of hostile providers."""

    async def mood(wire: Wire, seen: Seen) -> None:
        await (scene.rng.choice(_HARMLESS) if scene.rng.random() < 0.5 else good_answer)(wire, seen)

    return _in_mood(scene, mood)


def resets(scene: Scene) -> AbstractAsyncContextManager[None]:
    """It resets each connection."""

    async def mood(wire: Wire, seen: Seen) -> None:
        wire.reset()

    return _in_mood(scene, mood)


def hangs(scene: Scene) -> AbstractAsyncContextManager[None]:
    """It never answers."""

    async def mood(wire: Wire, seen: Seen) -> None:
        await wire.gone.wait()

    return _in_mood(scene, mood)
