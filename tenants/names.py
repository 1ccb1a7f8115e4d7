"""The words that tenants choose: one grammar for names and slugs, and one sentence that explains each."""

from __future__ import annotations

import re
from typing import Final

NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
NAME_RULE: Final = "must be 1 to 63 letters, digits, dots, underscores or hyphens, and start with a letter or digit"
SLUG: Final = r"^[a-z0-9][a-z0-9-]{0,62}$"

_NAME = re.compile(NAME)


def is_name(value: str) -> bool:
    """Tell whether `value` may name a pool, key or quota."""
    return _NAME.fullmatch(value) is not None


def own_quota_name(pool: str, key: str) -> str:
    """Return the name of the quota that is made for one key: the slash keeps it apart from tenants' own names."""
    return f"{pool}/{key}"
