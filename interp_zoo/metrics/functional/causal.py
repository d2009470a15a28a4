"""Insertion and deletion: how the target's probability moves as pixels come or go in the order of the map.

Petsiuk, Das and Saenko, "RISE", BMVC 2018. Pixels are ranked by their saliency, the highest first, and of equal ones
the upper, then the left one first. Deletion starts from the picture and puts a fill in the place of pixels; insertion
starts from the fill and brings the picture's pixels back. The figure is the area under the curve of probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# Pixels (B, channels, H, W) in [0, 1] to probabilities (B, classes).
Classifier = Callable[[Tensor], Tensor]
Fill = Literal["blur", "mean", "black", "noise"]
FILLS = ("blur", "mean", "black", "noise")

ROWS = 8  # pixels of that many rows change at a step: 1,792 at 224 x 224, as in the papers


def insertion(
    classify: Classifier, pixels: Tensor, saliency: Tensor, target: Tensor, *, mean: Tensor, **options: Any
) -> Tensor:
    """The area under the insertion curve, (N,) in percent. High is good. Arguments as for `insertion_curve`."""
    return area(insertion_curve(classify, pixels, saliency, target, mean=mean, **options))


def deletion(
    classify: Classifier, pixels: Tensor, saliency: Tensor, target: Tensor, *, mean: Tensor, **options: Any
) -> Tensor:
    """The area under the deletion curve, (N,) in percent. Low is good. Arguments as for `deletion_curve`."""
    return area(deletion_curve(classify, pixels, saliency, target, mean=mean, **options))


def insertion_curve(
    classify: Classifier,
    pixels: Tensor,
    saliency: Tensor,
    target: Tensor,
    *,
    mean: Tensor,
    fill: Fill = "blur",
    step: int | None = None,
    blur_kernel: int = 11,
    blur_sigma: float = 5.0,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """The target's probability as the map's best pixels come back, (N, steps + 1) in [0, 1].

    Args:
        classify: pixels (B, channels, H, W) in [0, 1] to probabilities (B, classes).
        pixels: the pictures, (N, channels, H, W) in [0, 1].
        saliency: their maps, (N, H, W), of any scale.
        target: their classes, (N,).
        mean: the mean colour that the model subtracts, (channels,).
        fill: what stands where a pixel is not: the picture blurred, the mean colour, black, or noise (uniform in
            [0, 1], the same for every picture).
        step: how many pixels change at a step; by default those of 8 rows. The last step may be smaller.
        blur_kernel: the width of the blur in pixels, odd. RISE's is 11; CA-Stream's authors take 5.
        blur_sigma: its standard deviation in pixels.
        seed: of the noise.
        batch_size: the most pictures at once.

    Raises:
        ValueError: if shapes do not fit, the maps hold NaN, or an option is none that there is.
    """
    order = ranks(pixels, saliency, target)
    start = filled(pixels, mean=mean, fill=fill, kernel=blur_kernel, sigma=blur_sigma, seed=seed)
    return _curve(classify, start, pixels, order, target, step=step, batch_size=batch_size)


def deletion_curve(
    classify: Classifier,
    pixels: Tensor,
    saliency: Tensor,
    target: Tensor,
    *,
    mean: Tensor,
    fill: Fill = "mean",
    step: int | None = None,
    blur_kernel: int = 11,
    blur_sigma: float = 5.0,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """The target's probability as the map's best pixels go, (N, steps + 1) in [0, 1]; see `insertion_curve`."""
    order = ranks(pixels, saliency, target)
    end = filled(pixels, mean=mean, fill=fill, kernel=blur_kernel, sigma=blur_sigma, seed=seed)
    return _curve(classify, pixels, end, order, target, step=step, batch_size=batch_size)


def area(curve: Tensor) -> Tensor:
    """The area under curves (N, steps + 1) on an axis from 0 to 1, by the trapezoidal rule, (N,) in percent."""
    return 100 * torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)


def ranks(pixels: Tensor, saliency: Tensor, target: Tensor) -> Tensor:
    """Each pixel's place in the order of its map, from 0, (N, H, W), after a look at the arguments' shapes."""
    if pixels.ndim != 4:
        raise ValueError(f"`pixels` has shape {tuple(pixels.shape)}, but must be (N, channels, H, W)")
    n, _, height, width = pixels.shape
    if saliency.shape != (n, height, width):
        raise ValueError(
            f"`saliency` has shape {tuple(saliency.shape)}, but must be {(n, height, width)} as the pixels"
        )
    if target.shape != (n,):
        raise ValueError(f"`target` has shape {tuple(target.shape)}, but must be ({n},), a class a picture")
    if bool(saliency.isnan().any()):
        raise ValueError("`saliency` holds NaN, which has no place in an order: leave these pictures out")
    order = saliency.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(n, height, width)


def filled(pixels: Tensor, *, mean: Tensor, fill: Fill, kernel: int, sigma: float, seed: int) -> Tensor:
    """What stands in the place of pictures (N, channels, H, W) whose pixels are all gone; see `insertion_curve`."""
    colour = mean.to(pixels)[:, None, None]
    if fill == "blur":
        return blurred(pixels - colour, kernel, sigma) + colour  # beyond the edges is the mean colour, as for RISE
    if fill == "mean":
        return colour.expand_as(pixels)
    if fill == "black":
        return torch.zeros_like(pixels)
    if fill == "noise":
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(pixels.shape[1:], generator=generator).to(pixels).expand_as(pixels)
    raise ValueError(f'`fill` is "{fill}", but must be one of {", ".join(FILLS)}')


def blurred(x: Tensor, kernel: int, sigma: float) -> Tensor:
    """Maps (N, channels, H, W) under a Gaussian of `kernel` x `kernel` pixels, with zeros beyond the edges."""
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"`blur_kernel` is {kernel}, but must be odd and at least 1")
    line = gaussian(kernel, sigma).to(x)
    channels = x.shape[1]
    rows = F.conv2d(x, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), padding=(kernel // 2, 0), groups=channels)
    return F.conv2d(rows, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), padding=(0, kernel // 2), groups=channels)


def gaussian(kernel: int, sigma: float) -> Tensor:
    """RISE's kernel, (kernel,), with sum 1: a Gaussian cut off at 4 sigma, what is too wide for it folded back in."""
    reach = int(4 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    places = (kernel // 2 + offsets.long()) % (2 * kernel)  # reflected at the edges, again and again
    places = torch.where(places < kernel, places, 2 * kernel - 1 - places)
    return torch.zeros(kernel, dtype=torch.float64).index_add_(0, places, weights / weights.sum())


def _curve(
    classify: Classifier,
    start: Tensor,
    end: Tensor,
    order: Tensor,
    target: Tensor,
    *,
    step: int | None,
    batch_size: int,
) -> Tensor:
    """The target's probability on pictures that turn from `start` into `end`, `step` pixels at a time."""
    n, _, height, width = start.shape
    step = ROWS * width if step is None else step
    if step < 1:
        raise ValueError(f"`step` is {step}, but must be at least 1 pixel")
    changed = range(0, height * width + step, step)  # the last step may have fewer pixels left
    jobs = [(i, count) for i in range(n) for count in changed]
    scores = []
    for first in range(0, len(jobs), batch_size):
        picture, count = torch.tensor(jobs[first : first + batch_size], device=start.device).unbind(1)
        pixels = torch.where((order[picture] < count[:, None, None])[:, None], end[picture], start[picture])
        with torch.no_grad():
            scores.append(classify(pixels).gather(1, target[picture][:, None])[:, 0])
    return torch.cat(scores).view(n, len(changed)) if scores else start.new_zeros(0, len(changed))
