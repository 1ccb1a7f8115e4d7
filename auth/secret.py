"""A string that never prints: provider keys, client secrets and tokens travel in it."""

from __future__ import annotations

import hmac
from typing import NoReturn, final


@final
class Secret:
    """Holds one sensitive string and shows it only to code that says `reveal()`.

    `repr`, `str`, `format`, f-strings, logging and pickling never carry the value; equality is constant-time.
    Python cannot wipe a `str` from memory: the protection is against leaks into outputs, not against a memory reader.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value; every call site is a place to review."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not serialised: reveal it where it is sealed, nowhere else")
