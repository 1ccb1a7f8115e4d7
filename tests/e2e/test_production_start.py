"""`serve` refuses to start when something is missing or unsafe, with the reason and the mend."""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import TestDatabase
from tests.e2e.production import PROGRAM

GOOD_KEY = base64.b64encode(bytes(32)).decode()


def serve(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [PROGRAM, "serve"], env={**clean, **environment}, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.fixture
def sound(test_database: TestDatabase) -> dict[str, str]:
    return {
        "DATABASE_URL": test_database.url,
        "LLM_PROXY_ISSUER": "https://llm.example.com",
        "LLM_PROXY_KEK": "env",
        "LLM_PROXY_KEK_KEYS": GOOD_KEY,
        "LLM_PROXY_PEPPERS": f"1:{GOOD_KEY}",
        "PORT": "0",
    }


@pytest.mark.parametrize("missing", ["DATABASE_URL", "LLM_PROXY_ISSUER", "LLM_PROXY_KEK", "LLM_PROXY_PEPPERS"])
def test_a_missing_variable_is_named(sound: dict[str, str], missing: str) -> None:
    done = serve({name: value for name, value in sound.items() if name != missing})
    assert done.returncode != 0
    assert missing in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("LLM_PROXY_ISSUER", "http://llm.example.com", "https"),
        ("LLM_PROXY_KEK_KEYS", "c2hvcnQ=", "32"),
        ("LLM_PROXY_PEPPERS", "1:c2hvcnQ=", "32"),
        ("DATABASE_URL", "mysql://somewhere/db", "postgresql"),
        ("PORT", "ninety", "PORT"),
    ],
)
def test_an_unsafe_value_is_refused(sound: dict[str, str], variable: str, value: str, said: str) -> None:
    done = serve({**sound, variable: value})
    assert done.returncode != 0
    assert variable in done.stderr + done.stdout
    assert said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout


def test_a_superuser_is_refused(sound: dict[str, str], test_database: TestDatabase) -> None:
    done = serve({**sound, "DATABASE_URL": test_database.owner_url})
    assert done.returncode != 0
    assert "superuser" in done.stderr + done.stdout


def test_a_world_readable_keyring_is_refused(sound: dict[str, str], tmp_path: Path) -> None:
    keyring = tmp_path / "keyring.json"
    keyring.write_text("{}")
    keyring.chmod(0o644)
    done = serve({**sound, "LLM_PROXY_KEK": f"file:{keyring}"})
    assert done.returncode != 0
    assert "0600" in done.stderr + done.stdout
