"""The report's charts, shades and numbers, apart from the page."""

from __future__ import annotations

import re

import numpy as np
import pytest

from interp_zoo.evaluation import charts
from interp_zoo.evaluation.charts import number, seconds


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 1, "–"),
        (float("nan"), 1, "–"),
        (float("-inf"), 1, "–"),
        (-0.04, 1, "0.0"),
        (-3.25, 2, "−3.25"),
        (7, 1, "7.0"),
    ],
)
def test_numbers(value: float | None, digits: int, text: str) -> None:
    assert number(value, digits) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0002, "<0.001"),
        (0.0312, "0.031"),
        (4.1, "4.10"),
        (12.34, "12.3"),
        (321.4, "321"),
        (0.0, "0.000"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_shades_get_darker_and_stay_readable() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        lines = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * lines[0] + 0.7152 * lines[1] + 0.0722 * lines[2]

    shades = [charts.shade(tau) for tau in np.linspace(-1, 1, 41)]
    light = [luminance(back) for back, _ in shades]
    assert light == sorted(light, reverse=True)
    for back, ink in shades:  # WCAG's AA
        one, other = sorted((luminance(back), luminance(ink)))
        assert (other + 0.05) / (one + 0.05) >= 4.5


def test_sixteen_methods_look_different() -> None:
    look = charts.styles([f"m{i}" for i in range(28)], ["f0", "f1", "f2"])
    assert len(set(look.values())) == 31
    assert len({(style.colour, style.dashes) for style in look.values()}) == 31  # without their shapes, too


def test_names_of_points_do_not_lie_on_each_other() -> None:
    rng = np.random.default_rng(0)
    points = {f"method_{i}": (0.03 * (1 + 0.05 * rng.random()), 20 * rng.random()) for i in range(16)}
    svg = charts.scatter(points, charts.styles(list(points), []), y="AG", prefix="c")
    places = re.findall(r'<text [^>]*?x="([\d.]+)" y="([\d.]+)"[^>]*>method_\d+<', svg)
    assert len(places) == 16
    at = [(float(x), float(y)) for x, y in places]
    width, height = 40, 8.5  # of "method_10" in 8.5 points, at least
    hits = [(a, b) for i, a in enumerate(at) for b in at[:i] if abs(a[0] - b[0]) < width and abs(a[1] - b[1]) < height]
    assert hits == []
