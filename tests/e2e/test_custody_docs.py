"""The commands of docs/custody.md, run by a shell as they are printed, over a running installation if they need one."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from gateway.embedded.binaries import find_binaries
from tests.e2e.conftest import free_port
from tests.e2e.production import Installation, installation

TEXT = (Path(__file__).parents[2] / "docs" / "custody.md").read_text()


def commands(title: str) -> list[str]:
    """Return the shell blocks of a section, in order."""
    section = re.search(rf"^#+ {re.escape(title)}.*?(?=^#+ [A-Z]|\Z)", TEXT, re.M | re.S)
    assert section is not None, title
    found = re.findall(r"^```sh\n(.*?)^```$", section[0], re.M | re.S)
    assert found, title
    return found


class Shell:
    """Runs blocks in one directory; what a block exports, the next ones have too."""

    def __init__(self, running: Installation, directory: Path) -> None:
        self.directory = directory
        paths = [str(Path(sys.executable).parent), str(find_binaries().directory), os.environ["PATH"]]
        self.environment = running.environment | {
            "PATH": ":".join(paths),
            "LLM_PROXY_MIGRATION_URL": running.postgres.owner_url,
        }

    def __call__(self, *blocks: str, fails: bool = False) -> str:
        script = "set -euo pipefail\n" + "\n".join(blocks) + "\nenv -0 > .environment\n"
        ran = subprocess.run(
            ["bash", "-c", script],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (ran.returncode != 0) == fails, f"{script}\n{ran.stdout}\n{ran.stderr}"
        if not fails:
            kept = (self.directory / ".environment").read_text().split("\0")
            self.environment = dict(line.split("=", 1) for line in kept if "=" in line)
        return ran.stdout + ran.stderr


POOL = {
    "name": "main",
    "providers": [{"name": "openai-1", "provider": "openai", "api_key": "sk-proj-0123456789abcdefghij"}],
}


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_every_command_works_as_printed(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "keyring").touch(mode=0o600)
    variables = {"LLM_PROXY_KEK": f"file:{tmp_path / 'keyring'}"}
    async with installation(tmp_path, port, **variables) as running:
        shell = Shell(running, tmp_path)
        shell(*commands("Keyring"))
        base_url = await running.start("serve", port)
        operator = {"authorization": f"Bearer {await asyncio.to_thread(running.token, base_url, running.operator)}"}
        async with httpx2.AsyncClient(base_url=f"{base_url}/api/v1") as client:
            made = (await client.post("/tenants", json={"slug": "acme"}, headers=operator)).json()
            tenant = {"authorization": f"Bearer {await asyncio.to_thread(running.token, base_url, made['client'])}"}
            assert (await client.post("/pools/import", json=POOL, headers=tenant)).status_code == 201
        shell.environment |= {
            "LLM_PROXY_URL": base_url,
            "LLM_PROXY_CLIENT_ID": made["client"]["client_id"],
            "LLM_PROXY_CLIENT_SECRET": made["client"]["client_secret"],
            "NEW_SECRET": "sk-proj-zyxwvutsrqponmlkjihg",
            "TENANT_ID": made["id"],
        }
        rotated = await asyncio.to_thread(shell, *commands("Rotate a key"))
        assert re.search(r"2 +current", rotated)
        revoked = await asyncio.to_thread(shell, *commands("A key leaked"))
        assert re.search(r"1 +revoked", revoked)
        export, dump, restore, compare = commands("Back up and restore")
        await asyncio.to_thread(shell, export)

        def offline() -> None:
            shell(*commands("Rotate the KEK"))
            shell(*commands("Shares"))
            shell(*commands("A data key may be known"))
            spared = shell(*commands("Prepare for the loss of the KEK"))
            assert re.search(r"share\+rsa://\w+ +spare +\d+ +enabled", spared)
            assert "were not opened" not in spared
            shell(*commands("The KEK is lost"))
            shell(dump)

        await asyncio.to_thread(offline)
        assert "openai-1" in await asyncio.to_thread(shell, "llm-proxy key list")
        # What happens after the backup is lost with the restore, but for the export that was made of it.
        more = 'printf %s "$NEW_SECRET-2" | llm-proxy key rotate main/openai-1'
        await asyncio.to_thread(running.stop_all)
        running.environment["LLM_PROXY_KEK_SHARES"] = f"file:{tmp_path / 'shares'}"
        running.environment["LLM_PROXY_KEK_SPARE"] = f"rsa:{tmp_path / 'break-glass.pub.pem'}"
        await running.start("serve", port)
        assert "intact" in await asyncio.to_thread(shell, compare)
        await asyncio.to_thread(shell, more, export)
        await asyncio.to_thread(running.stop_all)
        await asyncio.to_thread(shell, restore)
        await running.start("serve", port)
        told = await asyncio.to_thread(shell, compare, fails=True)
        assert "cut off or put back" in told
