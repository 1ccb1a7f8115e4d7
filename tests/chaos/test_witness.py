"""What chaos finds out about a process that hangs, and what it keeps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.chaos.run import keep_logs

_WITNESS = Path(__file__).parent / "witness"
_HANGS = """
import asyncio, uvloop
async def forever():
    # Said in the next turn of the loop, when this one waits.
    asyncio.get_running_loop().call_soon(lambda: print("up", flush=True))
    await asyncio.Event().wait()
async def main():
    task = asyncio.create_task(forever(), name="the one that hangs")
    await task
uvloop.run(main())
"""


def test_a_process_that_hangs_says_where_when_it_is_asked() -> None:
    environment = {**os.environ, "PYTHONPATH": str(_WITNESS)}
    command = [sys.executable, "-c", _HANGS]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "up\n"
            told = ""
            for number, last in ((signal.SIGUSR1, "in <module>"), (signal.SIGUSR2, "wait: await fut")):
                process.send_signal(number)
                while last not in told:
                    line = process.stderr.readline()
                    assert line, told
                    told += line
            assert "task the one that hangs" in told
            assert " forever:" in told
        finally:
            process.kill()


def test_logs_are_kept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "serve-1.log").write_text("a line\n")
    (tmp_path / "run" / "secret").write_text("no")
    out = keep_logs(tmp_path / "run", tmp_path / "out" / "seed-1")
    assert {each.name: each.read_text() for each in out.iterdir()} == {"serve-1.log": "a line\n"}
