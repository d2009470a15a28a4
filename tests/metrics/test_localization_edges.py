"""Localisation metrics on cases computed by hand, what they refuse, and the saliency metric against its definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import assert_one_line
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from interp_zoo.metrics.functional import localization
from interp_zoo.metrics.functional.localization import (
    Regions,
    box_accuracy,
    box_iou,
    box_of,
    energy_pointing_game,
    localization_error,
    official_metric,
    pixel_f1,
    pointing_game,
    saliency_metric,
)

Metric = Callable[[Tensor, Regions], Tensor]
YES, NAN = torch.tensor([True]), float("nan")
PLAIN: list[Metric] = [localization_error, pixel_f1, box_accuracy, pointing_game, energy_pointing_game]
ALL: list[Metric] = [*PLAIN, lambda saliency, regions: official_metric(saliency, regions, YES)]
NAMES = ["error", "f1", "accuracy", "pointing", "energy", "official"]
CORNER = torch.tensor([[0.0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])  # its box is (1, 0, 4, 2)


def value(metric: Callable[..., Tensor], saliency: Tensor, *boxes: tuple[float, ...], **options: Any) -> float:
    return metric(saliency[None], [torch.tensor(boxes).float().view(-1, 4)], **options).flatten()[0].item()


@pytest.mark.parametrize(
    ("metric", "boxes", "want"),
    [
        (localization_error, [(1, 0, 4, 2)], 0),
        (localization_error, [(1, 0, 4, 3)], 0),
        (localization_error, [(1, 0, 4, 4)], 100),  # half is not more than half
        (localization_error, [(1, -90, 40, 2)], 0),  # what leaves the picture does not count
        (localization_error, [(0, 3, 1, 4), (1, 0, 4, 3)], 0),
        (box_accuracy, [(1, 0, 4, 4)], 100),  # but at least half
        (box_accuracy, [(0, 0, 4, 4)], 0),
        (pixel_f1, [(1, 0, 4, 2)], 100),
        (pixel_f1, [(1, 0, 4, 4)], 200 / 3),  # precision 1, recall 1/2
        (pixel_f1, [(0, 0, 2, 4)], 200 / 7),  # precision 1/3, recall 1/4
        (pixel_f1, [(0, 0, 2, 4), (1, 0, 4, 4)], 200 / 3),
        (pixel_f1, [(0, 2, 4, 4)], 0),
        (energy_pointing_game, [(0, 0, 2, 4)], 100 / 3),
        (energy_pointing_game, [(0, 0, 2, 4), (1, 0, 2.5, 1)], 100 / 3),  # once, and no centre more
        (energy_pointing_game, [(0, 0, 2, 4), (1, 0, 2.75, 1)], 50),
        (energy_pointing_game, [(1.5, 0, 2.5, 1)], 100 / 6),  # a centre on the edge is in on the left, out on the right
        (pointing_game, [(0, 2, 4, 4)], 0),
        (pointing_game, [(3.5, 1.5, 9, 9)], 100),
        (pointing_game, [(3.6, 1.5, 9, 9)], NAN),  # holds no centre
        (pointing_game, [(-5, -5, 0, 9), (4, 0, 9, 4), (0, -3, 4, 0), (0, 4, 4, 8)], NAN),  # outside on every side
        (pointing_game, [], NAN),
    ],
)
def test_by_hand(metric: Metric, boxes: list[tuple[float, ...]], want: float) -> None:
    assert value(metric, CORNER, *boxes) == pytest.approx(want, nan_ok=True)


def test_what_differs_in_float64_alone_differs() -> None:
    saliency = torch.ones(2, 2, dtype=torch.float64)
    saliency[0, 0] += 1e-12
    assert value(pointing_game, saliency, (1, 0, 2, 2)) == 0
    assert value(localization_error, saliency, (0, 0, 1, 1)) == 0


def test_a_wrong_model_finds_nothing() -> None:
    maps, regions = CORNER.expand(3, 4, 4), [torch.tensor([[1.0, 0, 4, 2]])] * 2 + [torch.zeros(0, 4)]
    found = official_metric(maps, regions, torch.tensor([True, False, False]))
    torch.testing.assert_close(found, torch.tensor([0.0, 100, NAN]), equal_nan=True)


def test_only_box_accuracy_joins_pixels_at_their_corners() -> None:
    saliency = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]])
    assert value(localization_error, saliency, (3, 2, 4, 4)) == 0, "the column is the only pair"
    assert value(localization_error, saliency, (0, 0, 2, 2)) == 100
    assert value(box_accuracy, saliency, (3, 2, 4, 4)) == 0
    assert value(box_accuracy, saliency, (0, 0, 2, 2)) == 100, "of two pairs the first"
    saliency[2, 2] = 1
    assert value(box_accuracy, saliency, (0, 0, 4, 4)) == 100, "all five"


def test_thresholds_are_shares_of_the_maximum() -> None:
    saliency = torch.zeros(4, 4)
    saliency[:2, :2], saliency[:2, 2:] = 8, 2
    wide = torch.tensor([[0.0, 0, 4, 3]])  # two thirds of it where both values are in, else one third
    found = box_accuracy(saliency[None], [wide], thresholds=8)
    assert found.tolist() == [[100, 100, 0, 0, 0, 0, 0, 0]], "2 / 8 of the maximum is not above itself"


MAP = torch.tensor([[0.0, 0, 3, 0], [0, 0, 0, 0], [1, 0, 0, 0]])


@pytest.mark.parametrize(
    ("box", "energy", "legacy_energy", "pointing", "legacy_pointing"),
    [
        ((2, 0, 3, 1), 75, 25, 100, 0),  # column 2 of row 0, which they take for row 2 of column 0
        ((0, 2, 1, 3), 25, 75, 0, 100),
        ((-1, 0, 3, 1), 75, 25, 100, 0),  # their rows -1 to 3: the last one alone
        ((-2, 0, 1, 3), 25, 0, 0, 100),  # their rows -2 to 1: none; the pointing game compares, and slices nothing
        ((-0.9, 0, 1.9, 3.9), 25, 75, 0, 100),  # rounded towards 0
        ((0, 0, 1, 2), 0, 0, 0, 100),  # column 2 is their bottom edge, which only the pointing game takes in
        ((-3, 2, -1, 3), NAN, 75, NAN, 0),  # outside, but their rows -3 to -1 are the first two
    ],
)
def test_the_authors_way_by_hand(
    box: tuple[float, ...], energy: float, legacy_energy: float, pointing: float, legacy_pointing: float
) -> None:
    assert value(energy_pointing_game, MAP, box) == pytest.approx(energy, nan_ok=True)
    assert value(energy_pointing_game, MAP, box, legacy=True) == legacy_energy
    assert value(pointing_game, MAP, box) == pytest.approx(pointing, nan_ok=True)
    assert value(pointing_game, MAP, box, legacy=True) == legacy_pointing


def test_fakecam_points_well() -> None:
    fake = torch.ones(32, 32)
    fake[0, 0] = 0
    box = (8, 4, 24, 20)  # a quarter of the picture
    assert value(pointing_game, fake, box) == 100
    assert value(energy_pointing_game, fake, box) == pytest.approx(25, abs=0.03)
    assert value(localization_error, fake, box) == 100
    assert value(localization_error, fake, (0, 0, 32, 20)) == 0


@pytest.mark.parametrize("size", [(224, 224), (7, 7), (15, 13)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_maps_have_no_box_though_means_are_rounded(size: tuple[int, int], dtype: torch.dtype) -> None:
    for constant in (0.0, 0.1, 1 / 3, 0.7, 1e-30):
        saliency = torch.full(size, constant, dtype=dtype)
        assert value(localization_error, saliency, (0, 0, size[1], size[0])) == 100


@pytest.mark.parametrize("metric", ALL, ids=NAMES)
def test_zero_maps_and_types(metric: Metric) -> None:
    regions = [torch.tensor([[1, 0, 4, 2]])]
    want = metric(CORNER[None], regions)
    for dtype in (torch.float64, torch.bfloat16, torch.uint8, torch.bool):
        found = metric(CORNER[None].to(dtype), regions)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(found.float(), want)
    zero = metric(torch.zeros(1, 4, 4), regions).unique().tolist()
    assert zero == ([100.0] if metric in (localization_error, ALL[-1]) else [0.0])
    assert not metric(CORNER[None].requires_grad_(), regions).requires_grad


@pytest.mark.parametrize("metric", PLAIN, ids=NAMES[:-1])
def test_no_picture_no_figure(metric: Metric) -> None:
    assert metric(torch.zeros(0, 4, 4), []).shape == ((0, 100) if metric is box_accuracy else (0,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("metric", ALL, ids=NAMES)
def test_figures_lie_where_the_maps_do(metric: Metric) -> None:
    region = torch.tensor([[1.0, 0, 4, 3]])
    found = metric(CORNER[None].cuda(), [region.cuda()])
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), metric(CORNER[None], [region]))


def test_equal_masks_are_labelled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    largest = localization._largest

    def counted(mask: Any, diagonal: bool = False) -> Any:
        calls.append(diagonal)
        return largest(mask, diagonal)

    monkeypatch.setattr(localization, "_largest", counted)
    coarse = torch.randperm(49, generator=torch.Generator().manual_seed(0)).view(1, 7, 7) / 48
    region = [torch.tensor([[32.0, 32, 96, 128]])]
    found = box_accuracy(coarse.repeat_interleave(32, 1).repeat_interleave(32, 2), region, thresholds=1000)
    assert len(calls) == 48, "as many as there are different values above 0"
    torch.testing.assert_close(found, box_accuracy(coarse, [region[0] / 32], thresholds=1000))


def test_boxes_of_masks_and_their_overlap() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]).bool()
    pair, joined = box_of(mask), box_of(mask, diagonal=True)
    assert pair is not None
    assert pair.tolist() == [0, 0, 2, 1], "of two pairs the first"
    assert joined is not None
    assert joined.tolist() == [0, 0, 3, 3]
    assert box_of(torch.zeros(2, 3, dtype=torch.bool)) is None
    boxes = torch.tensor([[0.0, 0, 3, 3], [1, 0, 4, 3], [3, 0, 6, 3], [1, 1, 1, 1], [0, 0, 1.5, 3], [5, 5, 8, 8]])
    torch.testing.assert_close(box_iou(boxes[0], boxes), torch.tensor([1, 0.5, 0, 0, 0.5, 0]))
    assert box_iou(boxes[3], boxes[3]) == 0, "two points"
    assert box_iou(boxes[:2, None], boxes).shape == (2, 6)


GOOD = [torch.tensor([[0.0, 0, 2, 2]])]


@pytest.mark.parametrize("metric", ALL, ids=NAMES)
@pytest.mark.parametrize(
    ("saliency", "regions", "message"),
    [
        (CORNER, GOOD, r"`saliency` has shape \(4, 4\), but must be \(N, H, W\)"),
        (torch.zeros(1, 0, 4), GOOD, r"`saliency` has shape \(1, 0, 4\), but must be \(N, H, W\)"),
        (CORNER[None].log().sqrt(), GOOD, r"`saliency` holds NaN"),
        (-CORNER[None], GOOD, r"`saliency` holds negative values: cut them off"),
        (CORNER[None], GOOD * 2, r"`regions` has 2 entries, but must have one for each of the 1 maps"),
        (CORNER[None], [GOOD[0][0]], r"`regions\[0\]` is of float32 and shape \(4,\), but must be boxes \(M, 4\)"),
        (CORNER[None], [torch.ones(1, 5)], r"`regions\[0\]` is of float32 and shape \(1, 5\)"),
        (CORNER[None], [torch.ones(1, 4, 4)], r"is of float32 and shape \(1, 4, 4\), but .* masks \(M, 4, 4\) of bool"),
        (CORNER[None], [torch.ones(1, 4, 5).bool()], r"is of bool and shape \(1, 4, 5\)"),
        (CORNER[None], [torch.ones(1, 4).bool()], r"is of bool and shape \(1, 4\), but must be boxes"),
        (CORNER[None], [torch.tensor([[0, 0, NAN, 2]])], r"`regions\[0\]` holds NaN or infinite coordinates"),
        (CORNER[None], [torch.tensor([[0, 0, math.inf, 2]])], r"`regions\[0\]` holds NaN or infinite coordinates"),
        (CORNER[None], [torch.tensor([[2.0, 0, 1, 2]])], r"`regions\[0\]` has a box that ends before it starts"),
        (CORNER[None], [torch.tensor([[0.0, 2, 1, 1]])], r"`regions\[0\]` has a box that ends before it starts"),
    ],
)
def test_what_is_refused(metric: Metric, saliency: Tensor, regions: Regions, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        metric(saliency, regions)
    assert_one_line(error.value)


def test_what_single_functions_refuse() -> None:
    one: Any = CORNER[None]
    with pytest.raises(TypeError, match=r"`regions\[0\]` is a list, but must be a tensor of boxes"):
        pixel_f1(one, [[[0, 0, 1, 1]]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"`saliency` holds values above 1, which no soft mask has"):
        pixel_f1(2 * one, GOOD)
    with pytest.raises(ValueError, match=r"`saliency` holds NaN, or values whose sum is infinite"):
        energy_pointing_game(1e308 * one.double(), GOOD)
    with pytest.raises(ValueError, match=r"`thresholds` is 0, but must be at least 1"):
        box_accuracy(one, GOOD, thresholds=0)
    for bad in (torch.ones(1), torch.ones(2).bool(), torch.ones(1, 1).bool()):
        with pytest.raises(ValueError, match=r"`correct` is of \w+ and shape .*, but must be \(1,\) of bool"):
            official_metric(one, GOOD, bad)
    for game in (pointing_game, energy_pointing_game):
        with pytest.raises(ValueError, match=r"`regions\[0\]` holds masks, but `legacy` knows boxes only"):
            game(one, [one > 0], legacy=True)
    for mask in (one > 0, CORNER):
        with pytest.raises(ValueError, match=r"`mask` is of \w+ and shape .*, but must be \(H, W\) of bool"):
            box_of(mask)


class Net(nn.Module):
    """Probabilities of four classes, from pixels (B, 3, 6, 7); keeps what it is given."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(4, 3 * 6 * 7, generator=generator, dtype=torch.float64) / 4
        self.weight = nn.Parameter(scale * weight)
        self.seen: list[Tensor] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen.append(pixels)
        return (pixels.double().flatten(1) @ self.weight.T).softmax(1)


def slow_resize(plane: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with a = -0.75, pixels' centres at halves, the last ones repeated beyond the edges."""

    def kernel(d: float) -> float:
        d = abs(d)
        near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
        return near if d <= 1 else far if d < 2 else 0.0

    out = torch.zeros(height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            y, x = (i + 0.5) * plane.shape[0] / height - 0.5, (j + 0.5) * plane.shape[1] / width - 0.5
            for a in range(math.floor(y) - 1, math.floor(y) + 3):
                for b in range(math.floor(x) - 1, math.floor(x) + 3):
                    at = plane[min(max(a, 0), plane.shape[0] - 1), min(max(b, 0), plane.shape[1] - 1)]
                    out[i, j] += kernel(y - a) * kernel(x - b) * float(at)
    return out


MAPS = torch.zeros(5, 6, 7, dtype=torch.float64)
MAPS[0, 1:4, 2:6] = 1  # box (2, 1, 6, 4)
MAPS[1, 5, 6] = 0.5  # a pixel, less than a twentieth
MAPS[2] = 0.3  # constant: the whole picture
MAPS[3, 0, :] = 1  # a row, and four pixels elsewhere
MAPS[3, 3:5, 1:3] = 0.9
CROPS = [(2, 1, 6, 4), (6, 5, 7, 6), (0, 0, 7, 6), (0, 0, 7, 1), (0, 0, 7, 6)]


def pictures() -> tuple[Tensor, Tensor]:
    pixels = torch.rand(5, 3, 6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).round(decimals=1)
    return pixels.gt(0.5).double(), torch.tensor([0, 1, 2, 3, 0])


def test_the_saliency_metric_equals_its_twin() -> None:
    (pixels, target), net = pictures(), Net()
    copies = pixels.clone(), MAPS.clone(), target.clone()
    found = saliency_metric(net, pixels, MAPS, target)
    for picture, c, (left, top, right, bottom), figure in zip(pixels, target.tolist(), CROPS, found, strict=True):
        crop = torch.stack([slow_resize(plane[top:bottom, left:right], 6, 7) for plane in picture])
        area = max((right - left) * (bottom - top) / 42, 0.05)
        assert figure.item() == pytest.approx(math.log(area) - math.log(net(crop[None])[0, c].item()))
    assert net.seen[0].max() > 1, "not clamped"
    assert not found.requires_grad
    assert all(map(torch.equal, (pixels, MAPS, target), copies))


@given(st.integers(1, 7), st.permutations(range(5)))
@settings(max_examples=15, deadline=None)
def test_the_saliency_metric_in_batches(batch_size: int, order: list[int]) -> None:
    (pixels, target), net = pictures(), Net()
    want = saliency_metric(net, pixels, MAPS, target)
    net.seen.clear()
    found = saliency_metric(net, pixels[order], MAPS[order], target[order], batch_size=batch_size)
    torch.testing.assert_close(found, want[order])
    assert [len(seen) for seen in net.seen] == [min(batch_size, 5 - i) for i in range(0, 5, batch_size)]


def test_the_saliency_metric_stays_finite() -> None:
    pixels, target = pictures()
    found = saliency_metric(Net(scale=1e6), pixels.float(), MAPS.float(), target)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert 80 < found.max() < 88
    assert saliency_metric(Net(), pixels[:0], MAPS[:0], target[:0]).shape == (0,)


def test_what_the_saliency_metric_refuses() -> None:
    (pixels, target), net = pictures(), Net()
    for bad in ((pixels[0], MAPS, target), (pixels, MAPS[:, :5], target), (pixels, MAPS, target[:4])):
        with pytest.raises(ValueError, match=r"`pixels`, `saliency` and `target` have shapes .*, but must be \(N, ch"):
            saliency_metric(net, *bad)
    with pytest.raises(ValueError, match=r"`batch_size` is 0, but must be at least 1"):
        saliency_metric(net, pixels, MAPS, target, batch_size=0)
    with pytest.raises(ValueError, match=r"`saliency` holds negative values"):
        saliency_metric(net, pixels, MAPS - 1, target)
    with pytest.raises(ValueError, match=r"`saliency` holds NaN"):
        saliency_metric(net, pixels, MAPS * NAN, target)
    with pytest.raises(ValueError, match=r"`classify` gives values outside of \[0, 1\]: .* not logits"):
        saliency_metric(lambda x: 5 * net(x) - 2, pixels, MAPS, target)
