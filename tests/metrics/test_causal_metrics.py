"""Insertion and deletion against RISE's definition, written out picture by picture and step by step in float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from interp_zoo.metrics.functional import area, deletion, deletion_curve, insertion, insertion_curve
from interp_zoo.metrics.functional.fills import Fill, gaussian

FILLS: tuple[Fill, ...] = ("blur", "mean", "black", "noise", "linear")
MEAN = torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64)


class Net(nn.Module):
    """Probabilities of four classes, from pixels; counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(4, 3 * 12 * 10, generator=generator, dtype=torch.float64) / 8
        self.batches: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        return (pixels.double().flatten(1) @ self.weight.T).softmax(1)


def pictures(n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (n, 3, 12, 10) in [0, 1], maps (n, 12, 10) with ties, and classes."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(n, 3, 12, 10, generator=generator, dtype=torch.float64)
    maps = torch.randint(0, 9, (n, 12, 10), generator=generator).double() / 8
    return pixels, maps, torch.arange(n) % 4


def slow_kernel(size: int, sigma: float) -> list[list[float]]:
    """RISE's: a point in the middle of `size` x `size`, under a Gaussian cut off at 4 sigma, edges reflected."""
    point = torch.zeros(size, size, dtype=torch.float64)
    point[size // 2, size // 2] = 1
    kernel: list[list[float]] = gaussian_filter(point.numpy(), sigma).tolist()
    return kernel


def slow_blur(picture: Tensor, size: int, sigma: float) -> Tensor:
    """The normalised picture under the kernel, zeros beyond the edges, seen as pixels again."""
    kernel, half = slow_kernel(size, sigma), size // 2
    out = torch.zeros_like(picture)
    for c, (plane, mean) in enumerate(zip(picture, MEAN, strict=True)):
        for i in range(plane.shape[0]):
            for j in range(plane.shape[1]):
                total = 0.0
                for a in range(size):
                    for b in range(size):
                        y, x = i + a - half, j + b - half
                        if 0 <= y < plane.shape[0] and 0 <= x < plane.shape[1]:
                            total += kernel[a][b] * float(plane[y, x] - mean)
                out[c, i, j] = total + mean
    return out


def slow_curve(net: nn.Module, start: Tensor, end: Tensor, saliency: Tensor, c: int, step: int) -> list[float]:
    order = sorted(range(saliency.numel()), key=lambda k: (-float(saliency.flatten()[k]), k))
    picture, scores, done = start.clone(), [], 0
    while True:
        scores.append(float(net(picture[None])[0, c]))
        if done == len(order):
            return scores
        for k in order[done : done + step]:
            y, x = divmod(k, saliency.shape[1])
            picture[:, y, x] = end[:, y, x]
        done = min(done + step, len(order))


def slow_area(scores: list[float]) -> float:
    return 100 * sum((a + b) / 2 for a, b in pairwise(scores)) / (len(scores) - 1)


def slow_fill(picture: Tensor, fill: str, size: int, sigma: float) -> Tensor:
    return {
        "mean": MEAN[:, None, None].expand_as(picture),
        "black": torch.zeros_like(picture),
        "blur": slow_blur(picture, size, sigma),
    }[fill]


@pytest.mark.parametrize("step", [1, 7, 80, 120, 500, None])
@pytest.mark.parametrize("fill", ["mean", "black", "blur"])
def test_equal_their_twins(fill: Any, step: int | None) -> None:
    net, (pixels, maps, target) = Net(), pictures()
    options: dict[str, Any] = {"mean": MEAN, "fill": fill, "step": step, "blur_kernel": 5, "blur_sigma": 2.0}
    ins, dele = (f(net, pixels, maps, target, **options) for f in (insertion_curve, deletion_curve))
    figures = insertion(net, pixels, maps, target, **options), deletion(net, pixels, maps, target, **options)
    for i, (picture, saliency, c) in enumerate(zip(pixels, maps, target.tolist(), strict=True)):
        filled = slow_fill(picture, fill, 5, 2.0)
        for found, figure, start, end in ((ins, figures[0], filled, picture), (dele, figures[1], picture, filled)):
            want = slow_curve(net, start, end, saliency, c, step or 80)
            torch.testing.assert_close(found[i], torch.tensor(want, dtype=torch.float64))
            assert figure[i].item() == pytest.approx(slow_area(want))


@pytest.mark.parametrize(("size", "sigma"), [(11, 5.0), (5, 5.0), (7, 1.5), (1, 3.0)])
def test_the_kernel_is_rises(size: int, sigma: float) -> None:
    line = gaussian(size, sigma)
    torch.testing.assert_close(torch.outer(line, line), torch.tensor(slow_kernel(size, sigma), dtype=torch.float64))


@given(st.integers(1, 40), st.permutations(range(5)), st.integers(1, 150))
@settings(max_examples=15, deadline=None)
def test_batches_and_order_change_nothing(batch_size: int, order: list[int], step: int) -> None:
    net, (pixels, maps, target) = Net(), pictures(5)
    want = insertion_curve(net, pixels, maps, target, mean=MEAN, step=step)
    net.batches.clear()
    found = insertion_curve(net, pixels[order], maps[order], target[order], mean=MEAN, step=step, batch_size=batch_size)
    assert max(net.batches) <= batch_size
    assert sum(net.batches) == 5 * (-(-120 // step) + 1)
    torch.testing.assert_close(found, want[order])


def test_ends_of_the_curves() -> None:
    net, (pixels, maps, target) = Net(), pictures()
    whole = net(pixels).gather(1, target[:, None])[:, 0]
    for fill in FILLS:
        ins, dele = (f(net, pixels, maps, target, mean=MEAN, fill=fill) for f in (insertion_curve, deletion_curve))
        torch.testing.assert_close(ins[:, -1], whole)
        torch.testing.assert_close(dele[:, 0], whole)
        torch.testing.assert_close(ins[:, 0], dele[:, -1])


@pytest.mark.parametrize("curve_of", [insertion_curve, deletion_curve])
@pytest.mark.parametrize("step", [37, 119, 120, 500])
def test_ends_that_are_known_are_not_asked_for(curve_of: Any, step: int) -> None:
    """What another map's curve begins and ends with, this one's does, too."""
    net, (pixels, maps, target) = Net(), pictures()
    want = curve_of(net, pixels, maps, target, mean=MEAN, step=step)
    ends = curve_of(net, pixels, 1 - maps, target, mean=MEAN, step=step)[:, [0, -1]]
    net.batches.clear()
    found = curve_of(net, pixels, maps, target, mean=MEAN, step=step, ends=ends)
    torch.testing.assert_close(found, want)
    assert sum(net.batches) == 3 * (want.shape[1] - 2)
    none = curve_of(net, pixels[:0], maps[:0], target[:0], mean=MEAN, step=step, ends=ends[:0])
    assert none.shape == (0, want.shape[1])


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_maps_go_row_by_row(value: float) -> None:
    net, (pixels, maps, target) = Net(), pictures()
    rows = torch.arange(120, dtype=torch.float64).flip(0).view(12, 10).expand_as(maps)
    found = deletion_curve(net, pixels, torch.full_like(maps, value), target, mean=MEAN)
    torch.testing.assert_close(found, deletion_curve(net, pixels, rows, target, mean=MEAN))


def test_noise_is_the_seeds() -> None:
    net, (pixels, maps, target) = Net(), pictures()
    one, again, other = (
        deletion_curve(net, pixels, maps, target, mean=MEAN, fill="noise", seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_no_pictures() -> None:
    net, (pixels, maps, target) = Net(), pictures()
    assert insertion_curve(net, pixels[:0], maps[:0], target[:0], mean=MEAN).shape == (0, 3)
    assert insertion(net, pixels[:0], maps[:0], target[:0], mean=MEAN).shape == (0,)


def test_area_by_hand() -> None:
    torch.testing.assert_close(area(torch.tensor([[0.0, 1.0, 1.0], [0.5, 0.5, 0.5]])), torch.tensor([75.0, 50.0]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pixels": torch.zeros(3, 12, 10)}, r"`pixels` has shape \(3, 12, 10\), but must be \(N, channels, H, W\)"),
        ({"saliency": torch.zeros(3, 10, 12)}, r"`saliency` has shape \(3, 10, 12\), but must be \(3, 12, 10\)"),
        ({"saliency": torch.full((3, 12, 10), torch.nan)}, "`saliency` holds NaN"),
        ({"target": torch.zeros(2).long()}, r"`target` has shape \(2,\), but must be \(3,\)"),
        ({"fill": "white"}, '`fill` is "white", but must be one of blur, mean, black, noise, linear'),
        ({"step": 0}, "`step` is 0, but must be at least 1"),
        ({"ends": torch.zeros(3)}, r"`ends` has shape \(3,\), but must be \(3, 2\), two values a picture"),
        ({"blur_kernel": 4}, "`blur_kernel` is 4, but must be odd"),
    ],
)
def test_what_is_refused(change: dict[str, Any], match: str) -> None:
    pixels, maps, target = pictures()
    given_: dict[str, Any] = {"pixels": pixels, "saliency": maps, "target": target, "mean": MEAN} | change
    with pytest.raises(ValueError, match=match):
        insertion_curve(Net(), **given_)
