"""A simulated provider in a process of its own, with faults and counters that a test controls over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.e2e.conftest import free_port, wait_for


@dataclass(frozen=True)
class SeparateProvider:
    """Where it is; `counts` are its own books, key name → requests and tokens."""

    base_url: str
    process: subprocess.Popen[bytes]

    def counts(self) -> dict[str, dict[str, int]]:
        answer = httpx2.get(f"{self.base_url}/_sim/state")
        found: dict[str, dict[str, int]] = answer.raise_for_status().json()["keys"]
        return found


@contextmanager
def run_provider(directory: Path, config: Mapping[str, Any]) -> Iterator[SeparateProvider]:
    port = free_port()
    file, log = directory / "provider.json", directory / "provider.log"
    file.write_text(json.dumps(config))
    program = str(Path(sys.executable).parent / "llm-proxy")
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [program, "simulated-provider", "--port", str(port), "--config", str(file)], stdout=sink, stderr=sink
        )
    try:
        base_url = f"http://127.0.0.1:{port}"
        wait_for(f"{base_url}/_sim/state", process, log)
        yield SeparateProvider(base_url, process)
    finally:
        process.terminate()
        process.wait(10)
