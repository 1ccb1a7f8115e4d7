"""Costs from the price table: exact, rounded once, and None where no price is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.balancing.outcome import TokenUsage
from gateway.metering.price_list import Price
from gateway.metering.pricing import PriceTable, load_prices

TABLE = PriceTable(
    [
        Price(model="big-mini*", input=0.15, cached_input=0.075, output=0.6),
        Price(model="big*", input=2.5, output=10),
        Price(model="*", provider="house", input=0, output=0),
    ]
)


@pytest.mark.parametrize(
    ("provider", "model", "usage", "nanos"),
    [
        ("openai", "big-mini-1", TokenUsage(1_000_000, 0), 150_000_000),
        ("openai", "big-mini-1", TokenUsage(1_000_000, 0, 1_000_000), 75_000_000),
        ("openai", "big-mini-1", TokenUsage(1, 1), 750),
        ("openai", "big-mini-1", TokenUsage(1, 0, 1), 75),
        ("openai", "big-1", TokenUsage(3, 2, 2), 27_500),
        ("house", "own-7b", TokenUsage(3, 2), 0),
        ("openai", "own-7b", TokenUsage(3, 2), None),
    ],
)
def test_costs(provider: str, model: str, usage: TokenUsage, nanos: int | None) -> None:
    assert TABLE.cost_nanos(provider, model, usage) == nanos
    assert TABLE.cost_nanos(provider, model, usage) == nanos, "the cached look-up says the same"


def test_the_shipped_table_prices_the_common_models() -> None:
    table = load_prices()
    usage = TokenUsage(1_000_000, 1_000_000)
    assert table.cost_nanos("openai", "gpt-4o-mini-2024-07-18", usage) == 750_000_000
    assert table.cost_nanos("anthropic", "claude-sonnet-4-5", usage) == 18_000_000_000
    assert table.cost_nanos("openai", "no-such-model", usage) is None


@pytest.mark.parametrize(
    ("usage", "nanos"),
    [
        pytest.param(TokenUsage(1000, 0, 0, True, 400), (600 * 4 + 400 * 5) * 1000, id="five minutes"),
        pytest.param(TokenUsage(1000, 0, 0, True, 400, 100), (600 * 4 + 300 * 5 + 100 * 8) * 1000, id="an hour"),
        pytest.param(TokenUsage(1000, 0, 500, True, 500), (500 * 0.5 + 500 * 5) * 1000, id="read and written"),
        pytest.param(TokenUsage(1001, 2), (1001 * 8 + 2 * 40) * 1000, id="a long prompt"),
    ],
)
def test_caches_and_long_prompts(usage: TokenUsage, nanos: int) -> None:
    table = PriceTable(
        [
            Price("m", 8, 40, above=1000),
            Price("m", 4, 20, cached_input=0.5, cache_write=5, cache_write_1h=8),
        ]
    )
    assert table.cost_nanos("any", "m", usage) == nanos
    assert table.per_million("any", "m") == (4, 20)


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("gpt-4o", (2.5, 10)),
        ("gpt-4o-2024-08-06", (2.5, 10)),
        ("gpt-4o-2024-05-13", (5, 15)),
        ("claude-opus-4-1-20250805", (15, 75)),
        ("claude-opus-4-6", (5, 25)),
        ("claude-opus-4-6@20260205", (5, 25)),
        ("gpt-5-chat-latest", (1.25, 10)),
        ("gpt-4-0613", (30, 60)),
        ("gpt-5.5-pro-2026-04-23", (30, 180)),
    ],
)
def test_a_name_means_its_snapshots_too(model: str, price: tuple[float, float]) -> None:
    assert load_prices().per_million("any", model) == price


@pytest.mark.parametrize(
    "model",
    ["gpt-5.9", "gpt-5.9-pro", "claude-opus-4-9", "gpt-4o-mini-tts", "gpt-4o-audio-preview-2025-06-03", "o3-max"],
)
def test_a_sibling_that_nobody_priced_has_no_price(model: str) -> None:
    assert load_prices().per_million("openai", model) is None


def test_prices_of_a_file_go_before_the_shipped_ones(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text(
        '{"prices": [{"model": "gpt-4o-mini*", "input": 1, "output": 2}, {"model": "own-7b", "input": 3, "output": 4}]}'
    )

    table = load_prices(file)

    assert table.per_million("openai", "gpt-4o-mini") == (1, 2)
    assert table.per_million("vllm", "own-7b") == (3, 4)
    assert table.per_million("openai", "gpt-4.1") == load_prices().per_million("openai", "gpt-4.1")


def test_a_price_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        load_prices(tmp_path / "prices.json")


def test_the_page_shows_a_price_file(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/requests.md").read_text()
    file = tmp_path / "prices.json"
    file.write_text(page.split("## Prices")[1].split("```json\n")[1].split("```")[0])

    assert load_prices(file).per_million("vllm", "llama-3.3-70b") == (0.4, 0.4)


def test_the_cache_is_bounded() -> None:
    for number in range(10_000):
        TABLE.cost_nanos("openai", f"m{number}", TokenUsage(1, 1))
    assert len(TABLE._cache) <= 4096


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "cannot be read"),
        ('{"as_of": "x", "prices": [{"model": "m"}]}', "cannot be read"),
        ('{"as_of": "x", "prices": [{"model": "m", "input": -1, "output": 0}]}', "negative"),
    ],
)
def test_a_bad_price_file_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "prices.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=says):
        load_prices(file)
