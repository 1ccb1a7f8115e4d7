"""Builds and starts the mock provider: `mock_provider.c` with the C compiler of the system."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from processes import OTHER_CORE, Running, free_port


def start_provider(directory: Path) -> tuple[Running, int]:
    """Compile it into `directory` and start it; give the process and its port."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise SystemExit("A C compiler is needed for the mock provider: apt-get install gcc")
    program = directory / "mock_provider"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
    port = free_port()
    running = Running([str(program), str(port)], core=OTHER_CORE, log=directory / "provider.log")
    running.wait_for_port(port)
    return running, port
