"""Values that are made for every request: immutable to the type checker, cheap to make at run time.

A frozen dataclass sets each field through `object.__setattr__`, which costs three times a plain assignment; a relayed
request makes a dozen values with some sixty fields. `@value_type` is `@dataclass(frozen=True, slots=True)` in all that
a reader and mypy see, hash and equality included, but for the check at run time that nobody assigns to a field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

_Class = TypeVar("_Class")


@dataclass_transform(frozen_default=True)
def value_type(cls: type[_Class]) -> type[_Class]:
    """Make `cls` a value."""
    return dataclass(slots=True, unsafe_hash=True)(cls)
