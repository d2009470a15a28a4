"""Extremal perturbations: the mask of a given area under which the picture scores best, found by gradient ascent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.methods.registry import register
from interp_zoo.explain.targets import Target

# As TorchRay has them; in pixels, for pictures of about 224 x 224.
_STEP, _REACH, _COLDNESS = 7, 21, 20.0  # from one place of the mask to the next, how far it reaches, of the maximum
_AROUND = 1 + _REACH // _STEP  # so many places on each side count at a pixel
_BORDER = 1 + 2 * _REACH // _STEP  # so many places of 0 are put around the mask's own
_LEVELS, _BLUR = 8, 20.0  # of the blur, and its largest standard deviation
_RATE, _MOMENTUM = 0.01, 0.9
_WEIGHT, _GROWTH = 300.0, 1.0035  # of the area's term, and a step
_DIGITS = 6  # values that agree so far are ranked by their place, so that rounding does not rank them


@register(
    "extremal_perturbation",
    paper="Fong, Patrick and Vedaldi, ICCV 2019",
    cost="1 + iterations forward, iterations backward, for each area (iterations = 800)",
    aliases=("extremal",),
    at_picture=True,
    slow=True,
)
def extremal_perturbation(
    anatomy: Anatomy, pixels: Tensor, target: Target, *, areas: tuple[float, ...] = (0.1,), iterations: int = 800
) -> Tensor:
    """The smooth mask of a given area that keeps the score largest when all outside of it is blurred.

    Each mask maximises the score less the squared distance of its sorted values to zeros and ones, as many ones as the
    area has, with growing weight. Every other step sees the picture mirrored. Of several areas, the masks add up.

    Args:
        anatomy: the cut model.
        pixels: pictures.
        target: what is explained.
        areas: shares of the picture that are kept, (0.1,) or several.
        iterations: steps of gradient ascent.
    """
    if not areas or not all(0 < area < 1 for area in areas):
        raise ValueError(f"`areas` is {areas}, but must be shares between 0 and 1, such as (0.05, 0.1)")
    if iterations < 1:
        raise ValueError(f"`iterations` is {iterations}, but must be at least 1")
    anatomy.hasten(pixels)
    x = anatomy.normalise(pixels.detach())
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    masks = SmoothMasks.of(x)
    some = [areas[k : k + anatomy.batch_size] for k in range(0, len(areas), anatomy.batch_size)]
    return torch.stack(
        [
            torch.cat([_best_masks(anatomy, masks, x[i], target[i : i + 1], part, iterations) for part in some]).sum(0)
            for i in range(len(x))
        ]
    )


def _best_masks(
    anatomy: Anatomy, masks: SmoothMasks, x: Tensor, target: Target, areas: tuple[float, ...], iterations: int
) -> Tensor:
    """Masks (areas, H, W) for one picture (channels, H, W)."""
    levels, places = blurred(x), x.new_ones(len(areas), *masks.grid)
    pull, weight, mask = torch.zeros_like(places), _WEIGHT, x
    for step in range(iterations):
        places.requires_grad_()
        with torch.enable_grad():
            wide = masks(places)
            mask = masks.cropped(wide)
            shown = between(levels, mask)
            logits = anatomy.logits(shown.flip(3) if step % 2 == 0 else shown, normalised=True)
            distance = (wide - ideal(wide.detach(), areas)).square().mean((1, 2))
            (gradient,) = torch.autograd.grad((target.score(logits) - weight * distance).sum(), places)
        anatomy.passes.backward += len(areas)
        if anatomy.tick is not None:
            anatomy.tick(len(areas))
        pull = gradient if step == 0 else _MOMENTUM * pull + (1 - _MOMENTUM) * gradient
        places = (places.detach() + _RATE * pull).clamp(0, 1)
        weight *= _GROWTH
    return mask.detach()


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


def ideal(wide: Tensor, areas: tuple[float, ...]) -> Tensor:
    """For each mask ones where it is largest, as many as its area has, and zeros elsewhere."""
    values = wide.flatten(1)
    order = values.round(decimals=_DIGITS).argsort(dim=1, stable=True)
    zeros = torch.tensor([int(values.shape[1] * (1 - area)) for area in areas], device=wide.device)
    ones = (torch.arange(values.shape[1], device=wide.device) >= zeros[:, None]).to(wide)
    return torch.empty_like(values).scatter_(1, order, ones).view_as(wide)
