"""Smooth masks of a given area, and pictures that they leave sharp (Fong, Patrick and Vedaldi, ICCV 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# As TorchRay has them; in pixels, for pictures of about 224 x 224.
_STEP, _REACH, _COLDNESS = 7, 21, 20.0  # from one place of the mask to the next, how far it reaches, of the maximum
_AROUND = 1 + _REACH // _STEP  # so many places on each side count at a pixel
_BORDER = 1 + 2 * _REACH // _STEP  # so many places of 0 are put around the mask's own
_LEVELS, _BLUR = 8, 20.0  # of the blur, and its largest standard deviation
_DIGITS = 6  # values that agree so far are ranked by their place, so that rounding does not rank them


@dataclass
class SmoothMasks:
    """Makes smooth masks of coarse ones: at each pixel a soft maximum over the places around, each less with distance.

    A mask has a margin, into which the places at the picture's border reach.

    Attributes:
        size: height and width of the picture.
        grid: height and width of the coarse masks.
        weights: of the places around a pixel, by where in its cell the pixel is, (step * step, places, 1).
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    weights: Tensor

    @classmethod
    def of(cls, x: Tensor) -> SmoothMasks:
        """For pictures (B, channels, H, W)."""
        height, width = x.shape[2:]
        cells = torch.arange(_AROUND, -_AROUND - 1, -1)
        along = torch.arange(_STEP) + _STEP * cells[:, None]  # (2 _AROUND + 1, _STEP), the way from each place
        squares = along.to(x).square()
        distance = (squares.T[:, None, :, None] + squares.T[None, :, None, :]).sqrt().flatten(2, 3).flatten(0, 1)
        weights = torch.exp(-2 * (distance / _REACH - 0.5).relu().square())
        return cls((height, width), (-(-height // _STEP), -(-width // _STEP)), weights[:, :, None])

    def __call__(self, places: Tensor) -> Tensor:
        """Masks with their margins, from places (n, *grid) in [0, 1]."""
        rows, columns = (length + 2 * (_BORDER - _AROUND) for length in self.grid)
        near = F.unfold(places[:, None], 2 * _AROUND + 1, padding=_BORDER)  # (n, places around, cells)
        weighted = near[:, None] * self.weights
        soft = (_COLDNESS * weighted).exp()
        mask = ((weighted * soft).sum(2) / soft.sum(2)).view(len(places), -1, rows, columns)
        return F.pixel_shuffle(mask, _STEP)[:, 0, : 1 - _STEP, : 1 - _STEP]

    def cropped(self, wide: Tensor) -> Tensor:
        """Masks (n, H, W) without their margins."""
        height, width = self.size
        return wide[:, _REACH : _REACH + height, _REACH : _REACH + width]


def blurred(x: Tensor) -> Tensor:
    """The picture (channels, H, W) under ever less blur, (levels, channels, H, W); beyond its border all is 0."""
    found = []
    for level in range(_LEVELS):
        sigma = _BLUR * (1 - level / (_LEVELS - 1))
        rows, columns = (_gaussian(length, sigma).to(x) for length in x.shape[1:])
        found.append(rows @ x @ columns.T)
    return torch.stack(found)


def _gaussian(length: int, sigma: float) -> Tensor:
    """The matrix (length, length) that blurs, cut off at four standard deviations."""
    if sigma == 0:
        return torch.eye(length)
    reach = math.ceil(4 * sigma)
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma).square())
    apart = torch.arange(length)[:, None] - torch.arange(length)
    return torch.where(apart.abs() <= reach, (bell / bell.sum())[(apart + reach).clamp(0, 2 * reach)], 0)


def between(levels: Tensor, mask: Tensor) -> Tensor:
    """Pictures (n, channels, H, W) that are at the last level where masks (n, H, W) are 1, and at the first for 0."""
    place = mask[:, None] * (len(levels) - 1)
    low = place.detach().floor().long().clamp(0, len(levels) - 1)
    share = place - low
    shape = (len(mask), *levels.shape[1:])
    below, above = (levels.gather(0, index.clamp_max(len(levels) - 1).expand(shape)) for index in (low, low + 1))
    return (1 - share) * below + share * above


def ideal(wide: Tensor, area: float) -> Tensor:
    """Ones where a mask (1, H, W) is largest, as many as its area has, and zeros elsewhere."""
    values = wide.flatten()
    order = values.round(decimals=_DIGITS).argsort(stable=True)
    found = torch.zeros_like(values)
    found[order[int(len(values) * (1 - area)) :]] = 1
    return found.view_as(wide)
