"""The installed version of the program."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def program_version() -> str:
    """Return the version, or `0+unknown` when the package is not installed."""
    try:
        return version("llm-proxy")
    except PackageNotFoundError:
        return "0+unknown"
