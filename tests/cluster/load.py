"""Streams and short requests without a pause, until SIGTERM: `load.py GATEWAY CONTROL CREDENTIALS.json RESULT.json`.

Every stream must end with its last event and every request with 200, over connections that are kept and over fresh
ones, and every new token must be had at the first try. Nothing is ever tried twice: what fails counts.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

MODEL = "gpt-4o-mini"
STREAMS, KEPT, FRESH = 8, 3, 2
PAUSE_S = 0.1
TOKEN_EVERY_S = 2.0


@dataclass
class Load:
    """What was sent and how it ended."""

    gateway: str
    control: str
    credentials: dict[str, str]
    done: dict[str, int] = field(default_factory=lambda: {"streams": 0, "kept": 0, "fresh": 0, "tokens": 0})
    failures: list[dict[str, str]] = field(default_factory=list)
    token: str = ""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def body(self, *, stream: bool) -> dict[str, object]:
        return {"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "hello"}]} | (
            {} if stream else {"max_tokens": 2}
        )

    async def keep(self, kind: str, pause_s: float) -> None:
        """Do one thing after the other."""
        act = {"streams": self.stream, "kept": self.short, "fresh": self.afresh, "tokens": self.fetch_token}[kind]
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=4)) as client:
            while not self.stopping.is_set():
                began = time.time()
                try:
                    await act(client)
                except (httpx.HTTPError, ValueError) as error:
                    at = time.strftime("%H:%M:%S", time.localtime())
                    took = f"{time.time() - began:.1f} s"
                    self.failures.append(
                        {"kind": kind, "at": at, "after": took, "error": f"{type(error).__name__}: {error}"}
                    )
                else:
                    self.done[kind] += 1
                await asyncio.sleep(pause_s)

    async def stream(self, client: httpx.AsyncClient) -> None:
        url, last = f"{self.gateway}/v1/chat/completions", ""
        async with client.stream("POST", url, json=self.body(stream=True), headers=self.headers()) as answer:
            if answer.status_code != 200:
                raise ValueError(f"status {answer.status_code}: {(await answer.aread())[:300]!r}")
            async for line in answer.aiter_lines():
                last = line or last
        if last != "data: [DONE]":
            raise ValueError(f"the stream ended with {last[:100]!r}")

    async def short(self, client: httpx.AsyncClient) -> None:
        answer = await client.post(
            f"{self.gateway}/v1/chat/completions", json=self.body(stream=False), headers=self.headers()
        )
        if answer.status_code != 200:
            raise ValueError(f"status {answer.status_code}: {answer.text[:300]}")

    async def afresh(self, client: httpx.AsyncClient) -> None:
        del client
        async with httpx.AsyncClient(timeout=60) as fresh:
            await self.short(fresh)

    async def fetch_token(self, client: httpx.AsyncClient) -> None:
        form = {"grant_type": "client_credentials", "scope": "inference"}
        who = (self.credentials["client_id"], self.credentials["client_secret"])
        answer = await client.post(f"{self.control}/oauth2/token", data=form, auth=who)
        if answer.status_code != 200:
            raise ValueError(f"status {answer.status_code}: {answer.text[:300]}")
        self.token = answer.json()["access_token"]

    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    async def run(self) -> None:
        """Run until told to stop, and let what is in flight end."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stopping.set)
        async with httpx.AsyncClient(timeout=60) as client:
            await self.fetch_token(client)
        kinds = ["streams"] * STREAMS + ["kept"] * KEPT + ["fresh"] * FRESH
        await asyncio.gather(*(self.keep(kind, PAUSE_S) for kind in kinds), self.keep("tokens", TOKEN_EVERY_S))


def main(gateway: str, control: str, credentials: str, result: str) -> None:
    """Run the load and write what came of it."""
    load = Load(gateway, control, json.loads(Path(credentials).read_text()))
    asyncio.run(load.run())
    Path(result).write_text(json.dumps({"done": load.done, "failures": load.failures}, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
