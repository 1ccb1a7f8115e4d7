"""One environment variable: what it is called, what it means, how its text becomes a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable: `field` is its name in `Settings`; a `secret` one may be given as `NAME_FILE` too."""

    name: str
    field: str
    group: str
    default: str | None
    meaning: str
    parse: Callable[[str], Any]
    secret: bool = False
