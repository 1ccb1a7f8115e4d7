"""Going through many things without holding the loop up."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from gateway.unhurried import SLICE_S, unhurried


@pytest.mark.parametrize(("cost_s", "turns"), [(0.0, 0), (SLICE_S / 1000, 0), (SLICE_S / 20, 3), (SLICE_S, 6)])
async def test_others_have_their_turn_when_it_takes_long(cost_s: float, turns: int) -> None:
    now, turned = [0.0], count()
    over = False

    async def other() -> None:
        await asyncio.sleep(0)
        while not over:
            next(turned)
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await asyncio.sleep(0)
    seen = []
    async for item in unhurried(range(100), clock=lambda: now[0]):
        seen.append(item)
        now[0] += cost_s
    over = True
    await task
    assert seen == list(range(100))
    assert next(turned) == turns
