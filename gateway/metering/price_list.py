"""The shape of a price list."""

from __future__ import annotations

import msgspec


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices of the models that `model` (a glob) names, in US dollars per million tokens, at `provider` ("*" = any).

    `cached_input` is what a token read from the prompt cache costs; None = as `input`.
    """

    model: str
    input: float
    output: float
    cached_input: float | None = None
    provider: str = "*"


class PriceList(msgspec.Struct, frozen=True):
    """The file's shape. The first row that matches wins, so that exceptions stand above their family."""

    prices: list[Price]
    as_of: str = ""
