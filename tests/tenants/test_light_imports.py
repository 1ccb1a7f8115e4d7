"""What a data path process imports of this package loads neither the web framework nor the ORM."""

from __future__ import annotations

import subprocess
import sys

LIGHT = (
    "tenants.snapshot",
    "tenants.datakeys",
    "tenants.envelope",
    "tenants.keyring",
    "tenants.reencryption",
    "tenants.rewrap",
    "tenants.wrappers.choose",
)
HEAVY = ("litestar", "sqlmodel", "sqlalchemy", "authlib", "pydantic", "httpx")


def test_the_data_paths_share_is_light() -> None:
    code = (
        f"import sys\nfor name in {LIGHT!r}: __import__(name)\n"
        f"print(','.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
