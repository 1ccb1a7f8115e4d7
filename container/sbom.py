"""Prints a CycloneDX 1.6 list of the distributions installed beside this Python, for the container image."""

from __future__ import annotations

import json
import sys
from importlib.metadata import Distribution, distributions
from typing import Any


def component(found: Distribution) -> dict[str, Any]:
    """Describe one distribution: name, version, package URL and licence as its metadata states it."""
    name, version = found.metadata["Name"], found.version
    licence = found.metadata.get("License-Expression")
    entry: dict[str, Any] = {
        "type": "library",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{version}",
    }
    if licence:
        entry["licenses"] = [{"expression": licence}]
    return entry


def bill() -> dict[str, Any]:
    """Return the bill of materials, sorted, without a time stamp: the same image gives the same bytes."""
    components = sorted((component(each) for each in distributions()), key=lambda each: each["name"].lower())
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "llm-proxy"}},
        "components": components,
    }


if __name__ == "__main__":
    json.dump(bill(), sys.stdout, indent=1)
    sys.stdout.write("\n")
