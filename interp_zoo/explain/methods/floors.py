"""Maps that say nothing of what the model sees: a metric is to tell every method from them."""

from __future__ import annotations

import torch
from torch import Tensor

from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.methods.checks import at_least_one, usable_seed
from interp_zoo.explain.methods.registry import register
from interp_zoo.explain.targets import Target


@register("fakecam", paper="Poppi et al., CVPR workshops 2021", cost="none of its own", floor=True, at_picture=True)
def fakecam(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """One everywhere but in the top left pixel, at the picture's size: metrics should tell it from a map."""
    maps = pixels.new_ones(len(pixels), *pixels.shape[2:])
    maps[:, 0, 0] = 0
    return maps


@register(
    "center_gaussian",
    paper="Judd, Durand and Torralba, MIT-CSAIL-TR-2012-001",
    cost="none of its own",
    aliases=("centre_gaussian",),
    floor=True,
    at_picture=True,
)
def center_gaussian(anatomy: Anatomy, pixels: Tensor, target: Target, *, sigma: float = 0.25) -> Tensor:
    """A Gaussian in the middle, where photographers put things: the same map for every picture.

    Args:
        anatomy: the cut model.
        pixels: pictures.
        target: what is explained.
        sigma: its standard deviation, as a share of the picture's height and width.
    """
    height, width = pixels.shape[2:]
    rows, columns = (
        torch.exp(-0.5 * (((torch.arange(n) + 0.5) / n - 0.5) / sigma) ** 2).to(pixels) for n in (height, width)
    )
    return torch.outer(rows, columns).expand(len(pixels), -1, -1)


@register("random", paper="none", cost="none of its own", floor=True, at_picture=True)
def random(anatomy: Anatomy, pixels: Tensor, target: Target, *, seed: int = 0, grid: int = 7) -> Tensor:
    """Uniform noise on a grid as coarse as a network's last map: another map for every picture.

    Args:
        anatomy: the cut model.
        pixels: pictures.
        target: what is explained.
        seed: of the noise. How bright the picture is counts as well (in steps of 1/10,000, so that rounding does not),
            and nothing else: it has the same map in any batch.
        grid: the map's height and width.
    """
    at_least_one(grid=grid)
    usable_seed(seed)
    maps = []
    for brightness in pixels.detach().double().mean((1, 2, 3)).tolist():
        generator = torch.Generator().manual_seed((seed + round(10_000 * brightness) % 2**31) % 2**63)
        maps.append(torch.rand(grid, grid, generator=generator))
    return torch.stack(maps).to(pixels)
