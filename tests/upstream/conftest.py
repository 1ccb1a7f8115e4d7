"""Every socket test runs on both event loops: uvloop serves in production, asyncio everywhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Name the loops; pytest-asyncio runs each async test once per name."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
