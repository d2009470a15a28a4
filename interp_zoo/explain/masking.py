"""The one way in which maps become masks, and masks are laid on pictures: for methods and metrics alike."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def up(maps: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Upsamples maps (B, h, w) to (B, H, W), bilinear; maps of that size come back as they are."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=align_corners)[:, 0]


def minmax(maps: Tensor) -> Tensor:
    """Scales each of maps (B, H, W) to [0, 1]; a constant map becomes zeros (Opti-CAM's n, with n(constant) = 0)."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span = high - low
    constant = span <= 0
    return ((maps - low) / span.masked_fill(constant, 1)).masked_fill(constant, 0)


def apply(pixels: Tensor, mask: Tensor) -> Tensor:
    """Lays masks (B, H, W) in [0, 1] on pixels (B, channels, H, W) in [0, 1]: what is masked out turns black.

    This happens before the model's own normalisation (methods of the papers do so; some libraries mask after it, and
    what is masked out is then the mean colour).
    """
    return pixels * mask[:, None]
