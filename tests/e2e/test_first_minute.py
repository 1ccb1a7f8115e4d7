"""What a newcomer does: start it, paste what it prints, stop it, kill it, start it again."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.e2e.conftest import RunningGateway, run_dev


def printed_commands(output: str) -> list[str]:
    """The curl commands in what was printed, each as it would be pasted: continued lines belong together."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    return [found.strip() for found in re.findall(r"^[ \t]*((?:\w+=\$\()?curl (?:[^\n]*\\\n)*[^\n]*)$", plain, re.M)]


def test_the_printed_commands_work_when_pasted(gateway: RunningGateway) -> None:
    commands = printed_commands(gateway.output())
    assert len(commands) >= 2, gateway.output()
    pasted = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(commands)],
        capture_output=True,
        text=True,
        cwd=gateway.home.parent,
        check=False,
    )
    assert pasted.returncode == 0, pasted.stderr
    assert '"chat.completion"' in pasted.stdout, pasted.stdout + pasted.stderr


def test_the_secret_is_in_a_private_file_and_not_on_the_screen(gateway: RunningGateway) -> None:
    described = gateway.home / "dev.json"
    assert stat.S_IMODE(described.stat().st_mode) == 0o600
    assert gateway.client_secret not in gateway.output()
    assert str(described) in gateway.output().replace("\n", "")


def test_every_private_file_is_private(gateway: RunningGateway) -> None:
    for path in gateway.home.iterdir():
        if path.is_file() and path.suffix in {".json", ".key"}:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def processes_below(home: Path) -> list[str]:
    """Command lines of living processes that mention `home`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(home) in line and not dead:
                found.append(line)
    return found


@pytest.mark.timeout(180)
def test_it_survives_a_kill_and_keeps_its_data(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with run_dev(home) as first:
        authorization = {"authorization": f"Bearer {first.token()}"}
        made = httpx2.post(f"{first.base_url}/api/v1/pools", json={"name": "kept"}, headers=authorization)
        assert made.status_code == 201, made.text
        identity = first.client_id
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    with run_dev(home) as second:
        assert second.client_id == identity
        pools = httpx2.get(
            f"{second.base_url}/api/v1/pools", headers={"authorization": f"Bearer {second.token()}"}
        ).json()
        assert {pool["name"] for pool in pools["items"]} == {"main", "kept"}
    assert second.process.returncode == 0
    assert processes_below(home) == []


def test_the_command_line_does_what_the_api_does(gateway: RunningGateway, tmp_path: Path) -> None:
    program = str(Path(gateway.process.args[0]))  # type: ignore[index,arg-type]
    environment = {**os.environ, "LLM_PROXY_HOME": str(gateway.home)}

    def run(*words: str) -> str:
        done = subprocess.run(
            [program, *words], env=environment, capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    file = tmp_path / "pool.json"
    provider = {"name": "openai-primary", "api_key": "sk-proj-" + "1" * 40, "weight": 50, "rate_limit": 3000}
    file.write_text(
        json.dumps({"name": "filed", "providers": [provider], "strategy": "weighted_round_robin", "failover": True})
    )
    imported = run("pool", "import", str(file))
    assert "filed" in imported
    assert "1" * 20 not in imported
    assert "filed" in run("pool", "list")
    assert "openai-primary" in run("key", "list", "--pool", "filed")
    assert "inference" in run("client", "list")
    run("pool", "delete", "filed", "--yes")
    assert "filed" not in run("pool", "list")
    top = run("--help")
    for group in ("dev", "serve", "gateway", "control", "pool", "key", "client", "tenant", "migrate"):
        assert group in top
