"""Intervals, paired differences and rank agreement: against plain loops, scipy, and what they promise."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import bootstrap, kendalltau

from interp_zoo.metrics.statistics import interval, kendall_tau, paired_difference


def sample(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 100


def slow_interval(values: list[float], confidence: float, resamples: int) -> tuple[float, float]:
    """Draw as many pictures as there are, with replacement, again and again; take the percentiles of the means."""
    rng = random.Random(0)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(resamples))
    return means[int((1 - confidence) / 2 * resamples)], means[int((1 + confidence) / 2 * resamples)]


@pytest.mark.parametrize("confidence", [0.95, 0.6])
def test_equals_its_twin_up_to_chance(confidence: float) -> None:
    values = sample(60)
    low, high = interval(values, confidence=confidence, resamples=20_000).tolist()
    want = slow_interval(values.tolist(), confidence, 20_000)
    assert low == pytest.approx(want[0], abs=0.25)
    assert high == pytest.approx(want[1], abs=0.25)
    peer = bootstrap((values.numpy(),), lambda x, axis: x.mean(axis), method="percentile", confidence_level=confidence)
    assert (low, high) == pytest.approx(tuple(peer.confidence_interval), abs=0.4)


def test_it_holds_the_mean_as_often_as_it_says() -> None:
    """Of 400 samples of 40 pictures, about 95 % have an interval with the mean of all."""
    held = 0
    for seed in range(400):
        low, high = interval(sample(40, seed), resamples=400).tolist()
        held += low <= 50 <= high
    assert 0.90 <= held / 400 <= 0.98


def test_columns_are_as_alone() -> None:
    table = torch.stack([sample(50, 1), sample(50, 2)], 1)
    both = interval(table)
    for column in range(2):
        torch.testing.assert_close(both[:, column], interval(table[:, column]))


def test_nan_does_not_count() -> None:
    values = sample(30)
    holes = torch.full((70,), torch.nan, dtype=torch.float64)
    torch.testing.assert_close(interval(torch.cat([values, holes])), interval(values))
    assert interval(holes).isnan().all()
    assert interval(torch.zeros(0)).isnan().all()
    assert interval(torch.zeros(0, 3)).shape == (2, 3)
    partly = torch.stack([values, values.clone()], 1)
    partly[3, 1] = torch.nan
    assert interval(partly).isfinite().all()


def test_one_figure_says_nothing_of_others() -> None:
    assert interval(torch.tensor([7.0])).isnan().all()
    assert interval(torch.tensor([7.0, 7.0])).tolist() == [7.0, 7.0]
    some = torch.tensor([[1.0, 2.0], [torch.nan, 4.0], [torch.nan, 6.0]])
    assert interval(some).isnan().tolist() == [[True, False], [True, False]]
    assert paired_difference(torch.tensor([7.0]), torch.tensor([5.0])).isnan().tolist() == [False, True, True]


def test_large_samples_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = sample(200)
    want = interval(values)
    monkeypatch.setattr("interp_zoo.metrics.statistics._AT_ONCE", 1000)
    torch.testing.assert_close(interval(values), want, atol=0.5, rtol=0)


def test_pairing_tells_apart_what_means_do_not() -> None:
    hard = sample(50)
    first, second = hard + 1 + sample(50, 1) / 100, hard
    mean, low, high = paired_difference(first, second).tolist()
    assert mean == pytest.approx((first - second).mean().item())
    assert 1 < low < mean < high < 2
    assert interval(first)[0] < interval(second)[1]  # their own intervals overlap


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=8))
@settings(max_examples=60, deadline=None)
def test_tau_equals_its_twin_and_scipys(pairs: list[tuple[int, int]]) -> None:
    a, b = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    agree = [(x - u) * (y - v) for (x, y), (u, v) in combinations(pairs, 2)]
    untied = [sum(p[i] != q[i] for p, q in combinations(pairs, 2)) for i in range(2)]
    if 0 in untied:
        assert kendall_tau(a, b) != kendall_tau(a, b)  # NaN
        return
    want = (sum(x > 0 for x in agree) - sum(x < 0 for x in agree)) / (untied[0] * untied[1]) ** 0.5
    assert kendall_tau(a, b) == pytest.approx(want)
    assert kendall_tau(a, b) == pytest.approx(kendalltau(a.numpy(), b.numpy()).statistic)


def test_methods_without_a_figure_do_not_count() -> None:
    a, b = torch.tensor([1.0, 2, 3, torch.nan]), torch.tensor([1.0, 2, 3, 0])
    assert kendall_tau(a, b) == 1
    assert kendall_tau(a, -b) == -1


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`values` has shape \(2, 2, 2\), but must be \(N,\) or \(N, K\)"):
        interval(torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match=r"`confidence` is 95, but must be between 0 and 1, such as 0\.95"):
        interval(torch.zeros(2), confidence=95)
    with pytest.raises(ValueError, match=r"`second` has shape \(3,\), but must be \(2,\) as `first`"):
        paired_difference(torch.zeros(2), torch.zeros(3))
