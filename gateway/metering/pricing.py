"""What a request cost, in billionths of a US dollar, from a table of prices that operators may put theirs before.

Integers only: a month of many small costs adds up to the cent. A model without a price costs None, never zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path

import msgspec

from gateway.balancing.outcome import TokenUsage
from gateway.metering.price_list import Price, PriceList

_CACHE_BOUND = 4096


class PriceTable:
    """Looks prices up; `cost_nanos` is pure but for a bounded cache of look-ups."""

    def __init__(self, prices: Sequence[Price]) -> None:
        self._prices = tuple(prices)
        self._cache: dict[tuple[str, str], tuple[int, int, int] | None] = {}

    def cost_nanos(self, provider: str, model: str, usage: TokenUsage) -> int | None:
        """Return the cost of `usage` in billionths of a US dollar, rounded to the nearest; None without a price."""
        key = (provider, model)
        try:
            rates = self._cache[key]
        except KeyError:
            if len(self._cache) >= _CACHE_BOUND:
                self._cache.clear()
            rates = self._cache[key] = self._rates(provider, model)
        if rates is None:
            return None
        per_input, per_output, per_cached = rates
        fresh = usage.input - usage.cached_input
        return (fresh * per_input + usage.cached_input * per_cached + usage.output * per_output + 500) // 1000

    def per_million(self, provider: str, model: str) -> tuple[float, float] | None:
        """Return the prices of input and output tokens in US dollars per million, None without a price."""
        rates = self._rates(provider, model)
        return None if rates is None else (rates[0] / 1e6, rates[1] / 1e6)

    def _rates(self, provider: str, model: str) -> tuple[int, int, int] | None:
        """Return (input, output, cached) in millionths of a millionth of a dollar a token."""
        for price in self._prices:
            if price.provider in ("*", provider) and fnmatchcase(model, price.model):
                cached = price.input if price.cached_input is None else price.cached_input
                return round(price.input * 1e6), round(price.output * 1e6), round(cached * 1e6)
        return None


def load_prices(path: Path | None = None) -> PriceTable:
    """Read the prices that come with the gateway, and those of the file at `path`, which go before them.

    Raises ValueError with a sentence that says what is wrong with the file.
    """
    ours = _read(files("gateway.metering").joinpath("prices.json").read_bytes(), "prices.json")
    if path is None:
        return PriceTable(ours)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"The price file {path} cannot be read: {error.strerror}.") from error
    return PriceTable([*_read(raw, str(path)), *ours])


def _read(raw: bytes, name: str) -> list[Price]:
    try:
        table = msgspec.json.decode(raw, type=PriceList)
    except msgspec.DecodeError as error:
        raise ValueError(
            f"The price file {name} cannot be read: {error}. Each row needs model, input and output "
            "in US dollars per million tokens."
        ) from error
    for price in table.prices:
        if min(price.input, price.output, price.cached_input or 0) < 0:
            raise ValueError(f"The price of {price.model!r} is negative: give US dollars per million tokens.")
    return table.prices
