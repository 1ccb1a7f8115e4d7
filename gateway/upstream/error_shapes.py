"""What is decoded of a provider's error."""

from __future__ import annotations

from typing import Any

import msgspec


class ErrorObject(msgspec.Struct):
    type: Any = None
    code: Any = None
    status: Any = None
    message: Any = None
    metadata: Any = None
    details: Any = None


class ErrorBody(msgspec.Struct):
    error: Any = None
    type: Any = None
    response: Any = None
    choices: Any = None
