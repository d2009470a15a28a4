"""Average drop, increase and gain against their definitions, written out in plain Python."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch import Tensor

from interp_zoo.metrics.functional import average_drop, average_gain, average_increase

Metric = Callable[[Tensor, Tensor], Tensor]


def slow_drop(before: float, after: float) -> float:
    """Chattopadhay et al., WACV 2018: the share of the probability that is lost, in percent."""
    return 100 * (before - after) / before if after < before else 0.0


def slow_increase(before: float, after: float) -> float:
    """The same paper: whether it rises, in percent."""
    return 100.0 if after > before else 0.0


def slow_gain(before: float, after: float) -> float:
    """Zhang et al., CVIU 2024: the share of what is missing that is gained, in percent."""
    return 100 * (after - before) / (1 - before) if after > before else 0.0


TWINS: list[tuple[Metric, Callable[[float, float], float]]] = [
    (average_drop, slow_drop),
    (average_increase, slow_increase),
    (average_gain, slow_gain),
]
METRICS = [metric for metric, _ in TWINS]
BELOW_ONE = 1 - 2**-24  # the largest float32 below 1
EDGES = [0.0, 2**-126, 1e-30, 1e-6, 0.25, 0.5, 1 - 1e-6, BELOW_ONE, 1.0]


def assert_equals_twin(metric: Metric, twin: Callable[[float, float], float], pairs: list[tuple[float, float]]) -> None:
    for dtype in (torch.float32, torch.float64):
        before, after = torch.tensor(pairs, dtype=dtype).unbind(1)
        got = metric(before, after)
        assert got.shape == before.shape
        assert got.dtype == dtype
        want = [twin(b, a) for b, a in zip(before.double().tolist(), after.double().tolist(), strict=True)]
        torch.testing.assert_close(got.double(), torch.tensor(want, dtype=torch.float64), atol=1e-4, rtol=1e-5)
        assert ((got >= 0) & (got <= 100 + 1e-4)).all()


@pytest.mark.parametrize(("metric", "twin"), TWINS, ids=[m.__name__ for m in METRICS])
def test_each_pair_of_edges(metric: Metric, twin: Callable[[float, float], float]) -> None:
    assert_equals_twin(metric, twin, [(b, a) for b in EDGES for a in EDGES])


PROBABILITY = st.floats(0, 1, width=32, allow_subnormal=False)


@pytest.mark.parametrize(("metric", "twin"), TWINS, ids=[m.__name__ for m in METRICS])
@given(pairs=st.lists(st.tuples(PROBABILITY, PROBABILITY), min_size=1, max_size=20))
@example(pairs=[(0.5, 0.5), (0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
@settings(max_examples=60, deadline=None)
def test_equals_its_twin(
    metric: Metric, twin: Callable[[float, float], float], pairs: list[tuple[float, float]]
) -> None:
    assert_equals_twin(metric, twin, pairs)


def test_by_hand() -> None:
    before, after = torch.tensor([0.8, 0.5, 0.5, 1.0, 0.0]), torch.tensor([0.6, 0.75, 0.5, 1.0, 0.0])
    torch.testing.assert_close(average_drop(before, after), torch.tensor([25.0, 0, 0, 0, 0]))
    torch.testing.assert_close(average_increase(before, after), torch.tensor([0.0, 100, 0, 0, 0]))
    torch.testing.assert_close(average_gain(before, after), torch.tensor([0.0, 50, 0, 0, 0]))


@pytest.mark.parametrize("metric", METRICS)
def test_no_picture_no_figure(metric: Metric) -> None:
    assert metric(torch.zeros(0), torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("metric", METRICS)
def test_the_callers_tensors_stay_as_they_were(metric: Metric) -> None:
    before, after = torch.tensor([0.3, 0.9]), torch.tensor([0.6, 0.1])
    metric(before, after)
    assert torch.equal(before, torch.tensor([0.3, 0.9]))
    assert torch.equal(after, torch.tensor([0.6, 0.1]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        (torch.zeros(3), torch.zeros(2), "after"),
        (torch.zeros(3, 1), torch.zeros(3), "before"),
        (torch.zeros(()), torch.zeros(()), "before"),
        (torch.zeros(3), torch.zeros(3, 3), "after"),
    ],
    ids=["lengths", "column", "scalar", "matrix"],
)
def test_shapes_that_are_wrong(metric: Metric, before: Tensor, after: Tensor, name: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` has shape \([\d, ]*\), but both must be \(N,\)"):
        metric(before, after)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [-0.01, 1.01, 7.3, float("inf"), -float("inf")])
def test_logits_are_no_probabilities(metric: Metric, value: float) -> None:
    good, bad = torch.tensor([0.2, 0.5]), torch.tensor([0.2, value])
    with pytest.raises(ValueError, match=r"`before` holds values outside of \[0, 1\]: give probabilities, not logits"):
        metric(bad, good)
    with pytest.raises(ValueError, match=r"`after` holds values outside of \[0, 1\]: give probabilities, not logits"):
        metric(good, bad)


@pytest.mark.parametrize("metric", METRICS)
def test_nan_stays_nan(metric: Metric) -> None:
    got = metric(torch.tensor([torch.nan, 0.5]), torch.tensor([0.5, 0.5]))
    assert got[0].isnan(), "targets that are functions have no probability, and no figure either"
    assert got[1] == 0
