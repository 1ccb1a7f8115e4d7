"""What a request cost, in billionths of a US dollar, from a table of prices that operators may put theirs before.

Integers only: a month of many small costs adds up to the cent. A model without a price costs None, never zero.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from gateway.balancing.outcome import TokenUsage
from gateway.metering.price_list import Price, PriceList

_CACHE_BOUND = 4096
_SNAPSHOT: Final = re.compile(r"(.+)[-@](?:20\d\d-?\d\d-?\d\d|\d{4}|latest)")
"""What providers add to a model's name for one state of it: gpt-4o-2024-08-06, claude-opus-4-1-20250805, gpt-4-0613."""


class _Rates(NamedTuple):
    """Of one row: millionths of a millionth of a dollar a token, for requests of more than `above` input tokens."""

    above: int
    input: int
    output: int
    cached: int
    written: int
    written_1h: int


class PriceTable:
    """Looks prices up; `cost_nanos` is pure but for a bounded cache of look-ups."""

    def __init__(self, prices: Sequence[Price]) -> None:
        self._prices = tuple(prices)
        self._cache: dict[tuple[str, str], tuple[_Rates, ...]] = {}

    def cost_nanos(self, provider: str, model: str, usage: TokenUsage) -> int | None:
        """Return the cost of `usage` in billionths of a US dollar, rounded to the nearest; None without a price."""
        key = (provider, model)
        try:
            found = self._cache[key]
        except KeyError:
            if len(self._cache) >= _CACHE_BOUND:
                self._cache.clear()
            found = self._cache[key] = self._rates(provider, model)
        for above, per_input, per_output, per_cached, per_written, per_written_1h in found:
            if usage.input <= above:
                continue
            cost = usage.cached_input * per_cached + usage.output * per_output
            fresh = usage.input - usage.cached_input
            if written := usage.cache_write:
                kept = usage.cache_write_1h
                fresh -= written
                cost += (written - kept) * per_written + kept * per_written_1h
            return (cost + fresh * per_input + 500) // 1000
        return None

    def per_million(self, provider: str, model: str) -> tuple[float, float] | None:
        """Return the prices of input and output tokens in US dollars per million, None without a price.

        They are those of short requests, where long ones cost more.
        """
        found = self._rates(provider, model)
        return (found[-1].input / 1e6, found[-1].output / 1e6) if found else None

    def _rates(self, provider: str, model: str) -> tuple[_Rates, ...]:
        """Return the rows that match, to the first that holds for requests of any length."""
        snapshot = _SNAPSHOT.fullmatch(model)
        names = (model,) if snapshot is None else (model, snapshot.group(1))
        found: list[_Rates] = []
        for price in self._prices:
            if price.provider in ("*", provider) and any(fnmatchcase(name, price.model) for name in names):
                found.append(_rates_of(price))
                if not price.above:
                    break
        return tuple(found)


def _rates_of(price: Price) -> _Rates:
    written = price.input if price.cache_write is None else price.cache_write
    dollars = (
        price.input,
        price.output,
        price.input if price.cached_input is None else price.cached_input,
        written,
        written if price.cache_write_1h is None else price.cache_write_1h,
    )
    return _Rates(price.above or -1, *(round(each * 1e6) for each in dollars))


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
        others = (price.cached_input or 0, price.cache_write or 0, price.cache_write_1h or 0)
        if min(price.input, price.output, price.above, *others) < 0:
            raise ValueError(f"The price of {price.model!r} is negative: give US dollars per million tokens.")
    return table.prices
