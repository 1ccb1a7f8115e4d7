"""What other tools say: promtool runs the alerts' unit tests, hadolint reads the Containerfile."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from chart import CHART, HERE

ROOT = CHART.parent.parent


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def promtool() -> str:
    found = shutil.which("promtool")
    assert found, "promtool is missing: install Debian's package `prometheus`, or Prometheus' release"
    return found


def test_the_alert_rules_are_valid() -> None:
    done = run(promtool(), "check", "rules", *sorted((CHART / "alerts").glob("*.yaml")))

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_alerts_fire_and_stay_quiet_as_they_should() -> None:
    done = run(promtool(), "test", "rules", HERE / "alerts.yaml")

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_unit_test() -> None:
    tests = (HERE / "alerts.yaml").read_text()
    names = [
        line.split("alert:")[1].strip()
        for path in (CHART / "alerts").glob("*.yaml")
        for line in path.read_text().splitlines()
        if "- alert:" in line
    ]

    assert names
    assert [name for name in names if f"alertname: {name}\n" not in tests] == []


def test_the_containerfile_is_clean() -> None:
    done = run(Path(sys.executable).parent / "hadolint", ROOT / "Containerfile")

    assert done.returncode == 0, done.stdout + done.stderr
