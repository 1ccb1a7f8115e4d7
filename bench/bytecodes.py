"""Bytecodes and Python calls that one relayed request costs, by function: a figure that no load of the machine changes.

    python bench/bytecodes.py [--requests 300] [--functions 40] [--body small|big|stream]

The gateway of `bench/data_path.py` (everything on, usage rows discarded) counts what its interpreter executes for so
many requests over eight connections, after as many to warm up. A stream has 30 events, 20 ms apart so that nearly each
is a read of its own. Two thirds of a request's CPU are the interpreter's, about 14 ns a bytecode. Figures of two
versions of Python differ; compare within one.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import uvloop
from data_path import gateway, load, request, started
from relay_client import REQUEST, STREAMED

from gateway.proxy.app import DataPath
from gateway.proxy.channel import Channel

ROOT = str(Path(__file__).parent.parent)
CONNECTIONS = 8


class Tally:
    """Counts from `begin` to `end`."""

    def __init__(self) -> None:
        self.bytecodes: Counter[CodeType] = Counter()
        self.calls: Counter[CodeType] = Counter()

    def begin(self) -> None:
        sys.settrace(self._enter)

    def end(self) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, _: str, __: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.calls[frame.f_code] += 1
        return self._step

    def _step(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            self.bytecodes[frame.f_code] += 1
        return self._step

    def table(self, requests: int, functions: int) -> str:
        """Return the totals a request, by file and by function."""
        total = sum(self.bytecodes.values())
        files: Counter[str] = Counter()
        for code, count in self.bytecodes.items():
            files[_place(code.co_filename)] += count
        lines = [f"{total / requests:.0f} bytecodes and {sum(self.calls.values()) / requests:.0f} calls a request", ""]
        lines += [f"{count / requests:8.1f} {count / total:5.1%}  {name}" for name, count in files.most_common(30)]
        lines += ["", "bytecodes   calls  function"]
        lines += [
            f"{count / requests:9.1f}  {self.calls[code] / requests:6.2f}  "
            f"{_place(code.co_filename)}:{code.co_firstlineno} {code.co_qualname}"
            for code, count in self.bytecodes.most_common(functions)
        ]
        return "\n".join(lines)


def _place(path: str) -> str:
    return path.removeprefix(ROOT + "/") if path.startswith(ROOT) else "/".join(Path(path).parts[-2:])


def counted(requests: int, functions: int) -> type[DataPath]:
    """Return a data path that counts from its `requests`-th request on, and prints the table after as many more."""
    tally, served = Tally(), 0

    class Counted(DataPath):
        async def serve(self, channel: Channel) -> None:
            nonlocal served
            served += 1
            if served == requests:
                tally.begin()
            elif served == 2 * requests:
                tally.end()
                print(tally.table(requests, functions), flush=True)
            await super().serve(channel)

    return Counted


def counting(end: Connection, upstream_port: int, requests: int, functions: int) -> None:
    """Serve as `bench.data_path` does, and count."""
    gateway(end, upstream_port, None, counted(requests, functions))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--functions", type=int, default=40)
    parser.add_argument("--body", choices=("small", "big", "stream"), default="small")
    arguments = parser.parse_args()
    running = started(counting, arguments.requests, arguments.functions)
    body = {
        "small": REQUEST,
        "big": REQUEST[:-4] + b"x" * 8000 + REQUEST[-4:],
        "stream": REQUEST[:-1] + STREAMED,
    }[arguments.body]
    try:
        raw = request("/v1/chat/completions", running.token, body)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(load(running.port, raw, 2 * arguments.requests + CONNECTIONS, CONNECTIONS))
    finally:
        running.stop()


if __name__ == "__main__":
    main()
