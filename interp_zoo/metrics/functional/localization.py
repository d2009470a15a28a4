"""How well maps find what the picture shows: where objects lie is told by boxes or masks.

Definitions: Zhang et al. (Opti-CAM), CVIU 2024, after Zolna, Geras and Cho (CASME), CVIU 2020 (official metric,
localisation error, pixel-wise F1), Dabkowski and Gal, NeurIPS 2017 (saliency metric), Choe et al., CVPR 2020 (box
accuracy), Zhang et al., IJCV 2018 (pointing game) and Wang et al. (Score-CAM), CVPRW 2020 (energy-based one).

Boxes are (left, top, right, bottom) in pixels of the map, their edges continuous: pixel columns 0 to 2 are from 0 to 3.
A pixel is in a region if its centre is. Boxes are clipped to the picture; regions without any pixel are left out, and a
picture without any region has NaN for its figure. Figures come in the maps' dtype (float32 for narrower ones) and lie
on their device; they are computed in float64 on the CPU, where components are labelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from interp_zoo.memory import FORWARD_PIXELS, at_once
from interp_zoo.metrics.functional.causal import Classifier

Regions = Sequence[Tensor]  # for each picture boxes (M, 4), or masks (M, H, W) of bool; M differs between pictures
Box = tuple[int, int, int, int]  # left, top, right, bottom in whole pixels, right and bottom exclusive

SMALLEST_AREA = 0.05  # of a crop in the saliency metric; smaller ones win nothing more
_Form = Callable[[Tensor, int, int], Tensor]  # a picture's region, height and width to boxes or masks


def localization_error(saliency: Tensor, regions: Regions) -> Tensor:
    """0 where the map's box overlaps an object's by more than half (IoU > 0.5), else 100, (N,). Low is good.

    The map's box is the tight one of the largest 4-connected component of what is above the map's mean. A constant map
    has none: 100.

    Args:
        saliency: the maps, (N, H, W), not negative.
        regions: for each picture boxes (M, 4), or masks (M, H, W) of bool, for which their tight boxes stand.

    Raises:
        ValueError: if shapes do not fit, the maps hold NaN or negative values, or a box is none.
    """
    return _measure(saliency, regions, _boxes, lambda map_, boxes: 100.0 * (1 - _overlaps(_mean_box(map_), boxes)))


def official_metric(saliency: Tensor, regions: Regions, correct: Tensor) -> Tensor:
    """As `localization_error`, and 100 wherever the model is wrong, (N,). Low is good.

    Args:
        saliency: the maps, (N, H, W), not negative.
        regions: boxes or masks, as in `localization_error`.
        correct: whether the model's first class is the label, (N,) of bool.
    """
    error = localization_error(saliency, regions)
    if correct.dtype != torch.bool or correct.shape != error.shape:
        raise ValueError(
            f"`correct` is of {_named(correct)} and shape {tuple(correct.shape)}, but must be ({len(error)},) of bool, "
            "whether the model is right"
        )
    return error.masked_fill(~correct.to(error.device) & ~error.isnan(), 100.0)


def pixel_f1(saliency: Tensor, regions: Regions) -> Tensor:
    """The F1 of the map as a soft mask of the region that it fits best, (N,) in percent. High is good.

    Precision is the share of the map's sum that lies in the region, recall the map's mean there.

    Args:
        saliency: the maps, (N, H, W) in [0, 1].
        regions: boxes or masks, as in `localization_error`.
    """
    if bool((saliency > 1 + 1e-6).any()):  # resizing may round a little upwards
        raise ValueError("`saliency` holds values above 1, which no soft mask has: scale each map to [0, 1]")
    return _measure(saliency, regions, _masks, lambda map_, masks: max(_f1(map_, mask) for mask in masks))


def box_accuracy(saliency: Tensor, regions: Regions, *, thresholds: int = 100) -> Tensor:
    """100 where the map's box at a threshold overlaps an object's (IoU >= 0.5), else 0, (N, thresholds). High is good.

    MaxBoxAcc is its mean over pictures at the threshold where that is highest. At threshold t the box is the tight one
    of the largest 8-connected component of what is above t / `thresholds` of the map's maximum, t = 0, 1, ... The
    authors of MaxBoxAcc round maps to 8 bits first and take the component whose outline encloses most.

    Args:
        saliency: the maps, (N, H, W), not negative.
        regions: boxes or masks, as in `localization_error`.
        thresholds: how many there are.
    """
    if thresholds < 1:
        raise ValueError(f"`thresholds` is {thresholds}, but must be at least 1")

    def hits(map_: Tensor, boxes: Tensor) -> Tensor:
        return 100.0 * (box_iou(_boxes_of_levels(map_, thresholds)[:, None], boxes) >= 0.5).any(1)

    return _measure(saliency, regions, _boxes, hits, thresholds)


def best_threshold(hits: Tensor) -> int:
    """The column of hits (N, thresholds) with the highest mean, the first of several; NaN does not count."""
    return int(torch.nan_to_num(hits.nanmean(0), nan=0).argmax())


def pointing_game(saliency: Tensor, regions: Regions, *, legacy: bool = False) -> Tensor:
    """100 where any of the map's highest pixels lies in a region, else 0, (N,). No tolerance. High is good.

    A map that is zero everywhere points nowhere and misses; any other constant map is highest everywhere and hits.

    Args:
        saliency: the maps, (N, H, W), not negative.
        regions: boxes or masks, as in `localization_error`.
        legacy: as the code of Opti-CAM's authors has it, from boxes alone: rows are compared with left and right,
            columns with top and bottom, whole numbers (rounded towards 0), both edges included.
    """
    form = _legacy_masks if legacy else _masks
    return _measure(
        saliency,
        regions,
        form,
        lambda map_, masks: 100.0 * bool(((map_ == map_.max()) & ((map_ > 0) | legacy))[masks.any(0)].any()),
        legacy=legacy,
    )


def energy_pointing_game(saliency: Tensor, regions: Regions, *, legacy: bool = False) -> Tensor:
    """The share of the map's sum that lies in the regions, (N,) in percent, 0 for a zero map. High is good.

    Args:
        saliency: the maps, (N, H, W), not negative.
        regions: boxes or masks, as in `localization_error`; where they overlap, pixels count once.
        legacy: as the code of Opti-CAM's authors has it, from boxes alone: rows are taken from left to right, columns
            from top to bottom, by Python's slices of whole numbers (rounded towards 0). Nothing is clipped, so that a
            coordinate below 0 counts from the far edge and mostly leaves nothing.
    """
    form = _legacy_slices if legacy else _masks

    def share(map_: Tensor, masks: Tensor) -> float:
        total = float(map_.sum())
        return 100 * float(map_[masks.any(0)].sum()) / total if total else 0.0

    return _measure(saliency, regions, form, share, legacy=legacy)


def saliency_metric(
    classify: Classifier, pixels: Tensor, saliency: Tensor, target: Tensor, *, batch_size: int = 64
) -> Tensor:
    """How small a crop is and how sure the model on it, log(max(area, 0.05)) - log p, (N,) in nats. Low is good.

    The crop is the map's box of `localization_error`, or the whole picture where there is none, resized to the
    picture's size (bicubic, neither antialiased nor clamped); area is its share of the picture.

    Args:
        classify: pixels (B, channels, H, W) to probabilities (B, classes).
        pixels: the pictures, (N, channels, H, W) in [0, 1].
        saliency: their maps, (N, H, W), not negative.
        target: their classes, (N,).
        batch_size: the most pictures at once.

    Raises:
        ValueError: if shapes do not fit, the maps hold NaN or negative values, or `classify` gives no probabilities.
    """
    if pixels.ndim != 4 or saliency.shape != (len(pixels), *pixels.shape[2:]) or target.shape != (len(pixels),):
        raise ValueError(
            f"`pixels`, `saliency` and `target` have shapes {tuple(pixels.shape)}, {tuple(saliency.shape)} and "
            f"{tuple(target.shape)}, but must be (N, channels, H, W), (N, H, W) and (N,)"
        )
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}, but must be at least 1")
    height, width = pixels.shape[2:]
    boxes = [_mean_box(map_) or (0, 0, width, height) for map_ in _maps(saliency)]
    figures = torch.empty(len(boxes), dtype=torch.float64)
    most = at_once(batch_size, pixels.device, (height, width), FORWARD_PIXELS)
    for first in range(0, len(boxes), most):
        batch = slice(first, first + most)
        with torch.no_grad():
            crops = [
                F.interpolate(picture[None, :, top:bottom, left:right], (height, width), mode="bicubic")
                for picture, (left, top, right, bottom) in zip(pixels[batch], boxes[batch], strict=True)
            ]
            p = classify(torch.cat(crops)).gather(1, target[batch, None])[:, 0].cpu().double()
        if bool(((p < 0) | (p > 1)).any()):
            raise ValueError("`classify` gives values outside of [0, 1]: it must give probabilities, not logits")
        figures[batch] = -p.clamp_min(torch.finfo(torch.float32).tiny).log()  # at most 87.3
    areas = [(right - left) * (bottom - top) / (height * width) for left, top, right, bottom in boxes]
    return _handed_back(figures + torch.tensor(areas, dtype=torch.float64).clamp_min(SMALLEST_AREA).log(), saliency)


def box_of(mask: Tensor, *, diagonal: bool = False) -> Tensor | None:
    """The tight box of the mask's largest component, (4,) in float64: left, top, right, bottom. None if it is empty.

    Args:
        mask: (H, W) of bool. Of components of the same size the first one in reading order counts.
        diagonal: whether pixels that touch at a corner are connected, too.
    """
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise ValueError(f"`mask` is of {_named(mask)} and shape {tuple(mask.shape)}, but must be (H, W) of bool")
    box = _largest(mask.cpu().numpy(), diagonal)
    return None if box is None else torch.tensor(box).double().to(mask.device)


def box_iou(box: Tensor, boxes: Tensor) -> Tensor:
    """The area that two boxes share, over that of either, in [0, 1], 0 where they have none.

    Args:
        box: (..., 4), left, top, right, bottom.
        boxes: likewise, of any shape that broadcasts with it: (4,) and (M, 4) give (M,).
    """
    low, high = torch.maximum(box[..., :2], boxes[..., :2]), torch.minimum(box[..., 2:], boxes[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    either = (box[..., 2:] - box[..., :2]).prod(-1) + (boxes[..., 2:] - boxes[..., :2]).prod(-1) - shared
    return torch.where(either > 0, shared / either, 0.0)


def _measure(
    saliency: Tensor,
    regions: Regions,
    form: _Form,
    figure: Callable[[Tensor, Tensor], Any],
    *shape: int,
    legacy: bool = False,
) -> Tensor:
    """Each picture's figure from its map (H, W) in float64 and its regions in a form: boxes (M, 4), masks (M, H, W)."""
    maps = _maps(saliency)
    n, height, width = maps.shape
    if len(regions) != n:
        raise ValueError(f"`regions` has {len(regions)} entries, but must have one for each of the {n} maps")
    for i, region in enumerate(regions):  # before anything is computed
        _check_region(f"`regions[{i}]`", region, height, width, legacy=legacy)
    figures = torch.full((n, *shape), torch.nan, dtype=torch.float64)
    for i, region in enumerate(regions):
        formed = form(region.detach().cpu(), height, width)
        if len(formed):
            figures[i] = figure(maps[i], formed)
    return _handed_back(figures, saliency)


def _maps(saliency: Tensor) -> Tensor:
    """The maps in float64 on the CPU, after a look at them."""
    if saliency.ndim != 3 or 0 in saliency.shape[1:]:
        raise ValueError(f"`saliency` has shape {tuple(saliency.shape)}, but must be (N, H, W), a map a picture")
    maps = saliency.detach().cpu().double()
    if not bool(maps.sum((1, 2)).isfinite().all()):
        raise ValueError("`saliency` holds NaN, or values whose sum is infinite: leave these pictures out")
    if bool((maps < 0).any()):
        raise ValueError("`saliency` holds negative values: cut them off, or scale each map to [0, 1]")
    return maps


def _check_region(name: str, region: Tensor, height: int, width: int, *, legacy: bool) -> None:
    if not isinstance(region, Tensor):
        raise TypeError(f"{name} is a {type(region).__name__}, but must be a tensor of boxes (M, 4) or masks (M, H, W)")
    if region.dtype == torch.bool and region.ndim == 3 and region.shape[1:] == (height, width):
        if legacy:
            raise ValueError(f"{name} holds masks, but `legacy` knows boxes only: leave it off, or give boxes (M, 4)")
        return
    if region.dtype == torch.bool or region.is_complex() or region.ndim != 2 or region.shape[1] != 4:
        raise ValueError(
            f"{name} is of {_named(region)} and shape {tuple(region.shape)}, but must be boxes (M, 4) or masks "
            f"(M, {height}, {width}) of bool, of the maps' size"
        )
    if not bool(region.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinite coordinates: leave such boxes out")
    if bool((region[:, 2:] < region[:, :2]).any()):
        raise ValueError(f"{name} has a box that ends before it starts: give left, top, right, bottom")


def _handed_back(figures: Tensor, saliency: Tensor) -> Tensor:
    """Figures in the maps' dtype, though not in one that would round percents, on their device."""
    return figures.to(torch.promote_types(saliency.dtype, torch.float32)).to(saliency.device)


def _named(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _boxes(region: Tensor, height: int, width: int) -> Tensor:
    """A picture's regions as boxes, (M, 4) in float64, clipped, without the empty ones."""
    if region.dtype == torch.bool:
        return torch.tensor([_tight(mask) for mask in region.numpy() if mask.any()], dtype=torch.float64).view(-1, 4)
    size = torch.tensor([width, height, width, height])
    boxes = region.double().clamp_min(0).minimum(size)
    pixels = _pixels(boxes)
    return boxes[(pixels[:, :2] < pixels[:, 2:]).all(1)]


def _masks(region: Tensor, height: int, width: int) -> Tensor:
    """A picture's regions as masks, (M, height, width) of bool, without the empty ones."""
    if region.dtype == torch.bool:
        return region[region.flatten(1).any(1)]
    return _rectangles(_pixels(_boxes(region, height, width)), height, width)


def _pixels(boxes: Tensor) -> Tensor:
    """The first row and column whose centres are in boxes (M, 4), and the first ones that are not any more."""
    return (boxes - 0.5).ceil()


def _rectangles(pixels: Tensor, height: int, width: int) -> Tensor:
    """Masks (M, height, width) of the pixels from left and top to before right and bottom, (M, 4)."""
    left, top, right, bottom = pixels[..., None].unbind(1)
    columns, rows = torch.arange(width), torch.arange(height)
    across, down = (columns >= left) & (columns < right), (rows >= top) & (rows < bottom)
    return down[:, :, None] & across[:, None]


def _legacy_masks(region: Tensor, height: int, width: int) -> Tensor:
    """What the authors' pointing game takes for boxes (M, 4), (M, height, width): axes swapped, all edges in."""
    swapped = region.long()[:, [1, 0, 3, 2]]
    return _rectangles(swapped + torch.tensor([0, 0, 1, 1]), height, width)


def _legacy_slices(region: Tensor, height: int, width: int) -> Tensor:
    """What the authors' energy-based one takes for boxes (M, 4), (M, height, width): axes swapped, not clipped."""
    masks = np.zeros((len(region), height, width), dtype=bool)
    for mask, (left, top, right, bottom) in zip(masks, region.long().tolist(), strict=True):
        mask[left:right, top:bottom] = True
    return torch.from_numpy(masks)


def _f1(map_: Tensor, mask: Tensor) -> float:
    """The harmonic mean of inside / sum and inside / pixels, written so that nothing is divided by zero."""
    return 200 * float(map_[mask].sum()) / (float(map_.sum()) + int(mask.sum()))


def _overlaps(box: Box | None, boxes: Tensor) -> bool:
    return box is not None and bool((box_iou(torch.tensor(box).double(), boxes) > 0.5).any())


def _mean_box(map_: Tensor) -> Box | None:
    """The tight box of the largest component above the mean of a map (H, W)."""
    low, high = float(map_.min()), float(map_.max())
    threshold = min(max(float(map_.mean()), low), high)  # rounding must not put a constant map above its own mean
    return _largest((map_ > threshold).numpy())


def _boxes_of_levels(map_: Tensor, count: int) -> Tensor:
    """The map's boxes above t / count of its maximum, t = 0, 1, ..., (count, 4) in float64, zeros where it has none."""
    values = map_.numpy()
    levels = np.searchsorted(values.max() * np.arange(count) / count, values)  # how many thresholds lie below a value
    pixels = np.bincount(levels.ravel(), minlength=count + 1)
    boxes = np.zeros((count, 4))
    for t in range(count):
        if t and not pixels[t]:  # none falls away
            boxes[t] = boxes[t - 1]
        else:
            boxes[t] = _largest(levels > t, diagonal=True) or 0
    return torch.from_numpy(boxes)


def _largest(mask: NDArray[np.bool_], diagonal: bool = False) -> Box | None:
    """The tight box of a mask's largest component, of equal ones the first in reading order."""
    from scipy import ndimage  # here and not above: importing the package must stay quick

    if not mask.any():
        return None
    left, top, right, bottom = _tight(mask)
    labels, count = ndimage.label(mask[top:bottom, left:right], np.ones((3, 3)) if diagonal else None)
    if count == 1:
        return left, top, right, bottom
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    a, b, c, d = _tight(labels == sizes.argmax())  # labels go in reading order
    return left + a, top + b, left + c, top + d


def _tight(mask: NDArray[np.bool_]) -> Box:
    """The box of all of a mask, which must have a pixel."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
