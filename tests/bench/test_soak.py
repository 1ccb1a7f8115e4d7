"""The soak's verdict: what a leak looks like, and what does not count as one."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence

import pytest

from bench.soak_ramp import rate_at
from bench.soak_verdict import Allowance, Series, increases, judge, plot

HOUR = [5.0 * step for step in range(721)]
LEVEL = 250_000.0
ALLOWED = Allowance(0.0, 0.01)
"""A leak of 1 % an hour must be found; all that is seen lies within 10 %."""
Shape = Callable[[float], float]


def saw(period_s: float, height: float = 0.03, offset_s: float = 200.0) -> Shape:
    return lambda at: LEVEL * (1 + height * ((at - offset_s) % period_s) / period_s)


def teeth(period_s: float, offset_s: float = 200.0) -> list[float]:
    return [offset_s + period_s * step for step in range(int((3600 - offset_s) // period_s) + 1)]


def series(shape: Shape, leak: float = 0.0, noise: float = 0.003, seed: int = 1) -> Series:
    """Sample `shape`, with what a leak of this share an hour adds, and noise of this share."""
    rng = random.Random(seed)
    return [(at, shape(at) * (1 + leak * at / 3600) + LEVEL * rng.gauss(0, noise)) for at in HOUR]


def level(_: float) -> float:
    return LEVEL


def warm_up(at: float) -> float:
    return LEVEL * (0.5 + min(at, 900.0) / 1800)


def step_of(share: float) -> Shape:
    return lambda at: LEVEL * (1 + share * (at >= 3200))


CASES: dict[str, tuple[Shape, Sequence[float]]] = {
    "level": (level, ()),
    "warm-up": (warm_up, ()),
    "two teeth of 28 minutes": (saw(1680), teeth(1680)),
    "three teeth of 19 minutes": (saw(1140), teeth(1140)),
    "seven teeth": (saw(400), teeth(400)),
    "forty teeth": (saw(90), teeth(90)),
    "teeth shorter than a block": (saw(17), teeth(17)),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("shape", "collections"), CASES.values(), ids=CASES)
def test_a_saw_is_no_leak_and_a_leak_below_it_is_found(shape: Shape, collections: Sequence[float], seed: int) -> None:
    assert judge(series(shape, seed=seed), ALLOWED, collections).word == "flat"
    leaking = judge(series(shape, leak=0.015, seed=seed), ALLOWED, collections)
    assert leaking.word == "RISES"
    assert leaking.slope == pytest.approx(0.015 * LEVEL, rel=0.3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("shape", "collections"), CASES.values(), ids=CASES)
def test_a_leak_of_the_size_that_is_not_allowed_does_not_pass(
    shape: Shape, collections: Sequence[float], seed: int
) -> None:
    assert not judge(series(shape, leak=0.01, seed=seed), ALLOWED, collections).is_flat


def test_a_staircase_without_noise_is_a_leak() -> None:
    climbing = [(at, 100.0 + at // 300) for at in HOUR]
    assert judge(climbing, Allowance(1.0, 0.01)).word == "RISES"
    assert judge([(at, 100.0) for at in HOUR], Allowance(1.0, 0.01)).is_flat


@pytest.mark.parametrize(("share", "word"), [(0.005, "flat"), (0.2, "LEAPS"), (-0.2, "LEAPS")])
def test_one_late_step_is_no_trend_but_a_large_one_is_not_flat(share: float, word: str) -> None:
    assert judge(series(step_of(share)), ALLOWED).word == word


def test_what_the_noise_hides_is_not_called_flat() -> None:
    assert judge(series(level, noise=0.04, seed=2), ALLOWED).word == "UNSURE"


def test_the_slope_is_told_by_the_hour() -> None:
    verdict = judge([(at, at / 100) for at in HOUR], Allowance(0, 0))
    assert (verdict.slope, verdict.low, verdict.high) == pytest.approx((36, 36, 36))


def test_a_collection_is_where_its_counter_went_up() -> None:
    assert increases([(0, 3), (5, 3), (10, 4), (15, 4), (20, 6)]) == [10, 20]


@pytest.mark.parametrize("few", [[], [(0.0, 1.0), (1.0, 1.0)]])
def test_too_little_is_no_verdict(few: Series) -> None:
    with pytest.raises(ValueError, match="too few"):
        judge(few, Allowance(1, 1))


def test_the_plot_is_one_svg_of_all_charts() -> None:
    wave = series(level)
    root = ET.fromstring(plot({"Memory": ("MiB", {"rss": wave}), "Tasks": ("alive", {"tasks": wave})}))
    inner = [child for child in root if child.tag.endswith("svg")]
    assert [child.get("aria-label") for child in inner] == ["Memory", "Tasks"]
    assert int(inner[1].get("y", "0")) >= int(inner[0].get("height", "0"))


def test_the_rate_of_a_share_is_on_the_line_through_the_ramp() -> None:
    assert rate_at(0.5, (200.0, 0.2), (1200.0, 0.4)) == pytest.approx(1700)
    assert rate_at(0.9, (200.0, 0.2), (400.0, 0.21)) == 1200, "too far beyond what was seen"
    assert rate_at(0.5, (200.0, 0.3), (400.0, 0.3)) == 400, "chance made the line flat"
