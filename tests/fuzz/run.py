"""Throws what the OpenAPI document allows, and what it does not, at a running gateway: `make test-fuzz`.

The one thing looked for is an answer of 500 or more. Findings are printed with the curl command that repeats them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.e2e.conftest import run_dev

EXAMPLES = "30"


def main(schemathesis: str) -> int:
    """Return the fuzzer's exit code."""
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as directory,
        run_dev(Path(directory) / "home") as gateway,
    ):
        command = [
            schemathesis,
            "run",
            gateway.base_url + "/api/v1/openapi.json",
            "--checks=not_a_server_error",
            "--phases=examples,coverage,fuzzing",
            f"--max-examples={os.environ.get('FUZZ_EXAMPLES', EXAMPLES)}",
            "--continue-on-failure",
            "--warnings=off",
            "--generation-database=none",
            f"--header=Authorization: Bearer {gateway.token()}",
        ]
        if os.environ.get("CI"):
            command.append("--seed=1")  # a commit is green or not by itself; new cases are looked for elsewhere
        return subprocess.run(command, cwd=directory, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(str(Path(sys.argv[1]).absolute())))
