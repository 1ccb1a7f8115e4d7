"""The folder tree is the architecture: what may load what is checked, by contract and by really importing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("auth", "tenants", "gateway", "llm_proxy")
DATA_PATH = (
    "gateway.proxy.app",
    "gateway.proxy.directory",
    "gateway.upstream.dispatch",
    "gateway.metering.recorder",
    "gateway.metering.store",
    "gateway.database",
    "auth.tokens",
    "tenants.snapshot",
)
HEAVY = ("litestar", "sqlmodel", "sqlalchemy", "authlib", "httpx", "pydantic")


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("module", DATA_PATH)
def test_data_path_loads_no_control_plane_library(module: str) -> None:
    probe = f"import sys, {module}; print(*sorted({HEAVY!r} & sys.modules.keys()))".replace(
        repr(HEAVY), f"set({HEAVY!r})"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("command", ["gateway", "simulated-provider"])
def test_what_runs_for_months_loads_none_of_the_other_commands(command: str) -> None:
    probe = "; ".join(
        (
            "import sys, gateway.asgi, gateway.data_path, gateway.server",
            "from gateway.cli.program import program",
            f"assert program.get_command(None, {command!r}).name == {command!r}",
            "print(*{'rich', 'httpx', 'yaml', 'gateway.apply', 'gateway.cli.apply'} & sys.modules.keys())",
        )
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


def test_balancing_loads_the_standard_library_alone() -> None:
    probe = "; ".join(
        (
            "import sys",
            "before = set(sys.modules)",
            "import gateway.balancing.exchange",
            "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))",
        )
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, check=True)
    assert set(done.stdout.split()) - {"gateway"} <= sys.stdlib_module_names


def test_package_roots_are_empty() -> None:
    full = [str(p.relative_to(ROOT)) for p in sources() if p.name == "__init__.py" and p.read_text().strip()]
    assert full == ["llm_proxy/__init__.py"]


def test_one_place_reads_the_environment() -> None:
    readers = [str(p.relative_to(ROOT)) for p in sources() if re.search(r"os\.(environ|getenv)", p.read_text())]
    assert readers == ["gateway/settings.py"]


def test_files_stay_readable() -> None:
    long = {str(p.relative_to(ROOT)): n for p in sources() if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}


def test_no_room_is_called_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
    assert [str(p) for p in sources() if p.stem in vague or p.parent.name in vague] == []
