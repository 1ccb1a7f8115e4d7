"""The shape of a price list."""

from __future__ import annotations

import msgspec


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices of the models that `model` (a glob) names, in US dollars per million tokens, at `provider` ("*" = any).

    A name means its dated snapshots too: "gpt-4o" is also "gpt-4o-2024-08-06". `cached_input` is what a token read from
    the prompt cache costs, None = as `input`; `cache_write` one that is written to it, None = as `input`;
    `cache_write_1h` one that is kept for an hour, None = as `cache_write`. The row is for requests with more than
    `above` input tokens, and for all of the request's tokens then.
    """

    model: str
    input: float
    output: float
    cached_input: float | None = None
    provider: str = "*"
    cache_write: float | None = None
    cache_write_1h: float | None = None
    above: int = 0


class PriceList(msgspec.Struct, frozen=True):
    """The file's shape. The first row that matches wins, so that exceptions stand above their family."""

    prices: list[Price]
    as_of: str = ""
