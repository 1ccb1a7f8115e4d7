"""What tenants may choose from, in the words that they read."""

from __future__ import annotations

import pytest

from gateway.control.parts import make_catalogue


@pytest.mark.parametrize("url", ["https://169.254.169.254/", "https://localhost/v1", "https://0x7f.1/", "https:///v1"])
def test_a_refused_base_url_is_one_clause(url: str) -> None:
    base_urls = make_catalogue(allow_private=False).base_urls
    problem = base_urls.check(url)
    assert problem
    assert ": " in problem
    assert not problem.endswith(".")
    assert ". " not in problem


def test_a_public_base_url_is_taken() -> None:
    assert make_catalogue(allow_private=False).base_urls.check("https://llm.example.com/v1") is None


def test_a_strategy_may_carry_its_modifier() -> None:
    catalogue = make_catalogue(allow_private=False)

    assert catalogue.strategy_problem("adaptive+cache_affinity") is None
    assert catalogue.strategies["weighted_round_robin+cache_affinity"] == "weighted+cache_affinity"


def test_an_unknown_strategy_is_told_which_there_are() -> None:
    problem = make_catalogue(allow_private=False).strategy_problem("fastest")

    assert problem is not None
    assert "adaptive, default, geographic" in problem
    assert problem.endswith("weighted, or such as adaptive+cache_affinity")
