"""The one way in which maps become masks, and masks are laid on pictures: for methods and metrics alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def up(maps: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Upsamples maps (B, h, w) to (B, H, W), bilinear; maps of that size come back as they are."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=align_corners)[:, 0]


def minmax(maps: Tensor) -> Tensor:
    """Scales each of maps (B, H, W) to [0, 1]; a constant map becomes zeros (Opti-CAM's n, with n(constant) = 0).

    Gradients go through the least and the largest value, too, once: where several places share them, in equal parts. A
    map's gradient is the same, to the last bit, whatever other maps there are.
    """
    scaled: Tensor = _MinMax.apply(maps)
    return scaled


class _MinMax(torch.autograd.Function):
    """Written by hand: its sums are taken map by map, which torch rounds otherwise in batches."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
        span = high - low
        constant = span <= 0
        scaled: Tensor = (maps - low) / span.masked_fill(constant, 1)
        ctx.save_for_backward(scaled, span.reciprocal().masked_fill(constant, 0))
        return scaled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        scale: Tensor
        scaled, scale = ctx.saved_tensors
        of_high = torch.stack([one.sum() for one in gradient * scaled])[:, None, None]
        of_low = torch.stack([one.sum() for one in gradient])[:, None, None] - of_high
        for ends, taken in ((scaled == 0, of_low), (scaled == 1, of_high)):
            gradient = gradient - ends * (taken / ends.sum((-2, -1), keepdim=True).clamp_min(1))
        return gradient * scale


def finished(raw: Tensor, size: tuple[int, int]) -> Tensor:
    """What every raw map (B, h, w) goes through: rectified, upsampled to (H, W), scaled. Zeros if not finite."""
    finite = raw.isfinite().all(2).all(1)[:, None, None]
    return minmax(up(torch.where(finite, raw, 0).relu(), size))


def by_largest(maps: Tensor) -> Tensor:
    """Divides each of maps (B, H, W) that are nowhere negative by its largest value; a map of zeros stays one."""
    largest = maps.amax((-2, -1), keepdim=True)
    return maps / largest.masked_fill(largest == 0, 1)


def apply(pixels: Tensor, mask: Tensor) -> Tensor:
    """Lays masks (B, H, W) in [0, 1] on pixels (B, channels, H, W) in [0, 1]: what is masked out turns black.

    This happens before the model's own normalisation (methods of the papers do so; some libraries mask after it, and
    what is masked out is then the mean colour).
    """
    return pixels * mask[:, None]
