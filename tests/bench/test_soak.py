"""The soak's verdict: what a leak looks like, and what does not count as one."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET

import pytest

from bench.soak_verdict import Allowance, judge, plot

HOUR = [5.0 * step for step in range(720)]
NOISE = random.Random(1)
WAVE = [(at, 120.0 + NOISE.uniform(-3, 3)) for at in HOUR]
WARM_UP = [(at, 60.0 + min(at, 900.0) / 15) for at in HOUR]
LEAK = [(at, value + at / 240) for at, value in WAVE]


@pytest.mark.parametrize(
    ("series", "flat"), [(WAVE, True), (WARM_UP, True), (LEAK, False)], ids=["noise", "warm-up", "leak"]
)
def test_only_a_rise_of_the_second_half_counts(series: list[tuple[float, float]], flat: bool) -> None:
    assert judge(series, Allowance(4.0, 0.03)).is_flat is flat


def test_the_rise_is_what_the_line_gains_over_the_second_half() -> None:
    verdict = judge([(at, at / 100) for at in HOUR], Allowance(0, 0))
    assert verdict.rise == pytest.approx(17.95)
    assert verdict.error == pytest.approx(0, abs=1e-9)


def test_too_little_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="too few"):
        judge([(0.0, 1.0), (1.0, 1.0)], Allowance(1, 1))


def test_the_plot_is_one_svg_of_all_charts() -> None:
    root = ET.fromstring(plot({"Memory": ("MiB", {"rss": WAVE}), "Tasks": ("alive", {"tasks": WAVE})}))
    inner = [child for child in root if child.tag.endswith("svg")]
    assert [child.get("aria-label") for child in inner] == ["Memory", "Tasks"]
    assert int(inner[1].get("y", "0")) >= int(inner[0].get("height", "0"))
