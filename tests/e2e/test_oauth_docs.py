"""The commands of docs/oauth.md, run by a shell as they are printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.conftest import RunningGateway

TEXT = (Path(__file__).parents[2] / "docs" / "oauth.md").read_text()
MARK = "=== end of a block ==="


def blocks() -> list[str]:
    """Return the indented blocks, in order, without the indentation."""
    found = re.findall(r"(?:^    .*\n)+", TEXT, re.M)
    return [re.sub(r"^    ", "", block, flags=re.M) for block in found]


def documents(text: str) -> list[dict[str, Any]]:
    """Return the JSON documents that stand one after the other in `text`."""
    found, decoder = [], json.JSONDecoder()
    while text := text.strip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def test_every_command_works_as_printed(gateway: RunningGateway) -> None:
    commands = blocks()
    assert len(commands) >= 6
    environment = {
        **os.environ,
        "BASE_URL": gateway.base_url,
        "CLIENT_ID": gateway.client_id,
        "CLIENT_SECRET": gateway.client_secret,
    }
    script = "set -euo pipefail\n" + f"\necho; echo '{MARK}'\n".join(commands)
    ran = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    answers = [answer for output in ran.stdout.split(MARK) for answer in documents(output)]
    assert len(answers) >= 5
    for answer in answers:
        assert not {"error", "code"} & set(answer), answer
    assert any(answer.get("model", "").startswith("gpt-4o-mini") for answer in answers)
