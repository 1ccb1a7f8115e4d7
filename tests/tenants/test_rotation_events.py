"""Alerts: every event that somebody is told of is listed, so that it is counted from zero."""

from __future__ import annotations

import re
from pathlib import Path

from tenants.rotation_job import EVENTS

TENANTS = Path(__file__).parents[2] / "tenants"


def test_every_event_that_is_told_is_listed() -> None:
    told = {
        event
        for path in TENANTS.rglob("*.py")
        for call in re.findall(r"_alert\((.+)", path.read_text())
        for event in re.findall(r'"((?:rotation|federation|provisioning)\.[a-z_]+)"', call)
    }

    assert told == set(EVENTS)
