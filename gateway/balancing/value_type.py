"""Values that are made for every request: immutable to the type checker, cheap to make at run time.

A frozen dataclass sets each field through `object.__setattr__`, which costs three times a plain assignment; a relayed
request makes a dozen values with some sixty fields. `@value_type(frozen=True, slots=True)` is a dataclass of these
properties in all that a reader and mypy see, but for the check at run time that nobody assigns to a field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

__all__ = ["value_type"]

_Class = TypeVar("_Class")

if TYPE_CHECKING:
    from dataclasses import dataclass as value_type
else:

    def value_type(*, frozen: bool, slots: bool) -> Callable[[type[_Class]], type[_Class]]:
        """Make a class a value."""
        assert frozen, "a value is immutable"
        return dataclasses.dataclass(slots=slots, unsafe_hash=True)
