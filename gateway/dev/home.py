"""The directory of `llm-proxy dev`: its secrets, each made once and readable by its owner alone."""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from auth.errors import Fault
from auth.secret import Secret
from tenants.keyring import create_keyring_file

_LAYOUT = 1


class UnusableHome(Fault):
    """LLM_PROXY_HOME cannot be made, or not written to."""

    code = "unusable_home"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"The directory {path} cannot be used: {reason}.",
            hint="Run in a directory that you may write to, or name one: LLM_PROXY_HOME=~/.llm-proxy.",
        )


class DevHome:
    """Paths and files below LLM_PROXY_HOME.

    postgres/ the embedded server, keyring the key-encryption key, shares/ the tenants' shares,
    secrets.json the database password and the pepper,
    dev.json the demo tenant's client (for scripts), operator.json an operator's client, provider.port where the
    simulated provider was last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        # As root the server runs under another account, which must get through to its own directory; the files are
        # readable by their owner alone either way.
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
            writable = os.access(self.path, os.W_OK | os.X_OK)
        except OSError as error:
            raise UnusableHome(path, error.strerror or type(error).__name__) from None
        if not writable:
            raise UnusableHome(path, "Permission denied")

    @property
    def postgres(self) -> Path:
        """The embedded server's directory."""
        return self.path / "postgres"

    @property
    def profile(self) -> Path:
        """The demo tenant's client."""
        return self.path / "dev.json"

    @property
    def operator(self) -> Path:
        """The operator's client."""
        return self.path / "operator.json"

    def keyring(self) -> Path:
        """Return the keyring file, made on the first start."""
        path = self.path / "keyring"
        if not path.exists():
            create_keyring_file(path)
        return path

    def shares(self) -> Path:
        """Return the directory of the tenants' shares, made on the first start."""
        path = self.path / "shares"
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def secrets(self) -> tuple[Secret, Secret]:
        """Return the password of the gateway's database role and the peppers, made on the first start."""
        path = self.path / "secrets.json"
        held = read_json(path)
        if held is None:
            held = {
                "layout": _LAYOUT,
                "database_password": secrets.token_urlsafe(32),
                "peppers": "1:" + base64.b64encode(secrets.token_bytes(32)).decode(),
            }
            write_json(path, held)
        return Secret(held["database_password"]), Secret(held["peppers"])

    def provider_port(self) -> int:
        """Return the port that the simulated provider had last, 0 for any."""
        held = read_json(self.path / "provider.port")
        return held["port"] if held else 0

    def keep_provider_port(self, port: int) -> None:
        """Remember where the simulated provider is: its keys name it."""
        write_json(self.path / "provider.port", {"port": port})


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None when the file is missing or was cut short."""
    try:
        data = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file of mode 0600, all or nothing."""
    fresh = path.with_name(path.name + ".part")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(data, file, indent=2)
        file.write("\n")
    fresh.rename(path)
