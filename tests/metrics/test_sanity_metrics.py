"""Rank correlation, class sensitivity and cascading randomisation, against their definitions and scipy's."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import lively
from hypothesis import given, settings, strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn

import interp_zoo
from interp_zoo.metrics.functional import (
    cascade,
    class_sensitivity,
    randomization,
    randomization_curve,
    rank_correlation,
)


def slow_correlation(a: list[float], b: list[float]) -> float:
    """Pearson's correlation of the ranks, where equal values share the mean of their ranks."""
    ranks = [[sum(y < x for y in v) + (sum(y == x for y in v) - 1) / 2 for x in v] for v in (a, b)]
    means = [sum(r) / len(r) for r in ranks]
    dots = [
        sum((x - means[i]) * (y - means[j]) for x, y in zip(ranks[i], ranks[j], strict=True))
        for i, j in ((0, 1), (0, 0), (1, 1))
    ]
    return float(dots[0] / (dots[1] * dots[2]) ** 0.5)


VALUES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=24)


@given(VALUES)
@settings(max_examples=60, deadline=None)
def test_equals_its_twin_and_scipys(pairs: list[tuple[int, int]]) -> None:
    a, b = torch.tensor(pairs).float().unbind(1)
    found = rank_correlation(a.view(1, 1, -1), b.view(1, 1, -1))
    if a.unique().numel() == 1 or b.unique().numel() == 1:
        assert found.isnan().all()
        return
    assert found.item() == pytest.approx(slow_correlation(a.tolist(), b.tolist()))
    assert found.item() == pytest.approx(spearmanr(a.numpy(), b.numpy()).statistic)
    assert class_sensitivity(a.view(1, 1, -1), b.view(1, 1, -1)).item() == pytest.approx(100 * (1 - found.item()))


def test_each_picture_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(5, 6, 7, generator=generator), torch.rand(5, 6, 7, generator=generator)
    found = rank_correlation(a, b)
    assert found.shape == (5,)
    torch.testing.assert_close(
        found, torch.cat([rank_correlation(x[None], y[None]) for x, y in zip(a, b, strict=True)])
    )
    torch.testing.assert_close(rank_correlation(a, a.exp()), torch.ones(5).double())  # the order alone counts
    torch.testing.assert_close(class_sensitivity(a, -a), torch.full((5,), 200.0).double())
    torch.testing.assert_close(class_sensitivity(a, a), torch.zeros(5).double(), atol=1e-9, rtol=0)
    assert rank_correlation(a, torch.zeros_like(a)).isnan().all()
    assert rank_correlation(a[:0], b[:0]).shape == (0,)


def test_blank_maps() -> None:
    """Nothing is left where the other map is blank; there is nothing to compare where the first one is."""
    map_, blank = torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 4, 5)
    assert class_sensitivity(map_, blank).item() == 100
    assert class_sensitivity(blank, map_).isnan().all()
    model, own = nn.Linear(2, 2), []

    def explain(network: nn.Module) -> Tensor:
        own.append(network)
        return map_ if len(own) == 1 else blank

    assert randomization(model, explain, stages=2).item() == 0


def test_shapes_that_are_wrong() -> None:
    with pytest.raises(ValueError, match=r"`second` has shape \(2, 3, 4\) and `first` \(2, 4, 3\), but both must be"):
        rank_correlation(torch.zeros(2, 4, 3), torch.zeros(2, 3, 4))


def changed(model: nn.Module, other: nn.Module) -> list[bool]:
    """Whether each parameter differs."""
    return [not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)]


@pytest.mark.parametrize("stages", [1, 2, 4, 7])
def test_the_cascade_goes_from_the_output_to_the_input(stages: int) -> None:
    model = lively("test_resnet", num_classes=10)
    before = copy.deepcopy(model.state_dict())
    lost, last = [], 0
    for name, network in cascade(model, stages):
        marks = changed(model, network)
        first = marks.index(True)
        assert all(marks[first:])  # all of what comes later in the network
        owners = [n for n, m in network.named_modules() if next(m.parameters(recurse=False), None) is not None]
        assert name in owners
        lost.append(sum(marks))
        assert lost[-1] > last
        last = lost[-1]
        for key, value in network.state_dict().items():
            if "running" in key or "num_batches" in key:
                assert torch.equal(value, before[key])  # statistics stay
    assert len(lost) == stages
    assert lost[-1] == len(list(model.parameters()))
    if stages > 1:
        assert lost[0] == 2  # the classifier's weight and bias
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), "the model itself stays"


def test_values_keep_their_size_and_what_is_constant_stays() -> None:
    model = nn.Sequential(nn.Linear(200, 200), nn.LayerNorm(200))
    ((_, network),) = cascade(model, 1)
    old, new = model.get_parameter("0.weight"), network.get_parameter("0.weight")
    assert new.std().item() == pytest.approx(old.std().item(), rel=0.05)
    assert torch.equal(network.get_parameter("1.weight"), model.get_parameter("1.weight"))


def test_the_seed_decides() -> None:
    model = lively("test_resnet", num_classes=10)
    one, again, other = ([copy.deepcopy(n.state_dict()) for _, n in cascade(model, 2, seed=s)][-1] for s in (1, 1, 2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["conv1.0.weight"], other["conv1.0.weight"])


def test_no_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="`stages` is 0, but must be at least 1"):
        next(cascade(nn.Linear(2, 2), 0))


@pytest.mark.filterwarnings(r"ignore:map \d of the batch is blank:UserWarning")
def test_a_map_that_does_not_look_at_the_weights_keeps_all(tiny_cnn: nn.Module, batch: Tensor) -> None:
    def left(method: str) -> Tensor:
        return randomization(tiny_cnn, lambda m: interp_zoo.Explainer(m, method).maps(batch[:2], [1, 2]), stages=3)

    torch.testing.assert_close(left("fakecam"), torch.full((2,), 100.0).double())
    assert (left("layercam") < 90).all()


def test_the_curve_is_the_twins() -> None:
    """Against the cascade walked by hand."""
    model, x = lively("test_resnet", num_classes=10), torch.randn(2, 3, 32, 32, generator=torch.Generator())

    def explain(network: nn.Module) -> Tensor:
        return interp_zoo.Explainer(network, "layercam").maps(x, [3, 4])

    own, want = explain(model), []
    for _, network in cascade(model, 3):
        maps = explain(network)
        want.append(
            [100 * abs(slow_correlation(own[i].flatten().tolist(), maps[i].flatten().tolist())) for i in (0, 1)]
        )
    found = randomization_curve(model, explain, stages=3)
    torch.testing.assert_close(found, torch.tensor(want).double().T, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(randomization(model, explain, stages=3), found.mean(1))
