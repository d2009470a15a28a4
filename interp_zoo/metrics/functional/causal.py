"""Insertion and deletion: how the target's probability moves as pixels come or go in the order of the map.

Petsiuk, Das and Saenko, "RISE", BMVC 2018. Pixels are ranked by their saliency, the highest first, and of equal ones
the upper, then the left one first. Deletion starts from the picture and puts a fill in the place of pixels; insertion
starts from the fill and brings the picture's pixels back. The figure is the area under the curve of probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from interp_zoo.memory import FORWARD_PIXELS, at_once
from interp_zoo.metrics.functional.fills import Fill, painter

# Pixels (B, channels, H, W) in [0, 1] to probabilities (B, classes).
Classifier = Callable[[Tensor], Tensor]

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
    ends: Tensor | None = None,
) -> Tensor:
    """The target's probability as the map's best pixels come back, (N, steps + 1) in [0, 1].

    Args:
        classify: pixels (B, channels, H, W) in [0, 1] to probabilities (B, classes).
        pixels: the pictures, (N, channels, H, W) in [0, 1].
        saliency: their maps, (N, H, W), of any scale.
        target: their classes, (N,).
        mean: the mean colour that the model subtracts, (channels,).
        fill: what stands where a pixel is not: "blur", "mean", "black", "noise" or "linear" (ROAD's); see
            `fills.painter`.
        step: how many pixels change at a step; by default those of 8 rows. The last step may be smaller.
        blur_kernel: the width of the blur in pixels, odd. RISE's is 11; CA-Stream's authors take 5.
        blur_sigma: its standard deviation in pixels.
        seed: of the noise.
        batch_size: the most pictures at once; on a CPU, no more than it takes with ease.
        ends: the curve's first and last value, (N, 2), where they are known: they hang on no map, so that whoever
            compares maps takes them from the first one's curve. None: they are computed.

    Raises:
        ValueError: if shapes do not fit, the maps hold NaN, `classify` gives no probabilities, or an option is none
            that there is.
    """
    order = ranks(pixels, saliency, target)
    paint = painter(pixels, mean=mean, fill=fill, kernel=blur_kernel, sigma=blur_sigma, seed=seed)
    return _curve(
        classify,
        lambda which, count: paint(which, order[which] >= count),
        pixels.shape,
        target,
        step=step,
        batch_size=batch_size,
        ends=ends,
    )


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
    ends: Tensor | None = None,
) -> Tensor:
    """The target's probability as the map's best pixels go, (N, steps + 1) in [0, 1]; see `insertion_curve`."""
    order = ranks(pixels, saliency, target)
    paint = painter(pixels, mean=mean, fill=fill, kernel=blur_kernel, sigma=blur_sigma, seed=seed)
    return _curve(
        classify,
        lambda which, count: paint(which, order[which] < count),
        pixels.shape,
        target,
        step=step,
        batch_size=batch_size,
        ends=ends,
    )


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


def _curve(
    classify: Classifier,
    changed: Callable[[Tensor, Tensor], Tensor],
    shape: torch.Size,
    target: Tensor,
    *,
    step: int | None,
    batch_size: int,
    ends: Tensor | None,
) -> Tensor:
    """The target's probability on pictures of which ever more pixels are changed, `step` at a time.

    Args:
        classify: pixels to probabilities.
        changed: (which pictures (B,), how many of their pixels (B, 1, 1)) to pixels (B, channels, H, W).
        shape: the pictures', (N, channels, H, W).
        target: their classes.
        step: how many pixels at a time.
        batch_size: the most pictures at once.
        ends: the first and last value, if they are known.
    """
    n, _, height, width = shape
    step = ROWS * width if step is None else step
    if step < 1:
        raise ValueError(f"`step` is {step}, but must be at least 1 pixel")
    if ends is not None and ends.shape != (n, 2):
        raise ValueError(f"`ends` has shape {tuple(ends.shape)}, but must be {(n, 2)}, two values a picture")
    counts = range(0, height * width + step, step)  # the last step may have fewer pixels left
    counts = counts if ends is None else counts[1:-1]
    jobs = torch.cartesian_prod(torch.arange(n), torch.tensor(counts, dtype=torch.long)).view(-1, 2).to(target.device)
    scores = []
    most = at_once(batch_size, target.device, (height, width), FORWARD_PIXELS)
    for which, count in (job.unbind(1) for job in jobs.split(most) if len(jobs)):
        with torch.no_grad():
            probabilities = classify(changed(which, count[:, None, None]))
        if bool(((probabilities < -1e-6) | (probabilities > 1 + 1e-6)).any()):
            raise ValueError("`classify` gave values outside of [0, 1]: let it end in a softmax")
        scores.append(probabilities.gather(1, target[which][:, None])[:, 0])
    curve = torch.cat(scores).view(n, len(counts)) if scores else torch.zeros(n, len(counts), device=target.device)
    return curve if ends is None else torch.cat([ends[:, :1], curve, ends[:, 1:]], dim=1)
