"""Extremal perturbations: the mask of a given area under which the picture scores best, found by gradient ascent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.methods.checks import at_least_one
from interp_zoo.explain.methods.registry import register
from interp_zoo.explain.smoothmasks import SmoothMasks, between, blurred, ideal
from interp_zoo.explain.targets import Target

# As TorchRay has them.
_RATE, _MOMENTUM = 0.01, 0.9
_WEIGHT, _GROWTH = 300.0, 1.0035  # of the area's term, and a step


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
    if not areas or not all(isinstance(area, float) and 0 < area < 1 for area in areas):
        raise ValueError(f"`areas` is {areas}, but must be shares between 0 and 1, such as (0.05, 0.1)")
    at_least_one(iterations=iterations)
    anatomy.hasten(pixels)
    x = anatomy.normalise(pixels.detach())
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    masks = SmoothMasks.of(x)
    pictures = [i for i in range(len(x)) for _ in areas]
    best = x.new_zeros(len(x), *masks.size)
    for rows in anatomy.together(range(len(pictures)), pixels[pictures], target[pictures]):
        of = [pictures[row] for row in rows]
        own = [areas[row % len(areas)] for row in rows]
        found = _best_masks(anatomy, masks, x[of], target[of], own, iterations)
        best.index_add_(0, torch.tensor(of).to(x.device), found)
    return best


def _best_masks(
    anatomy: Anatomy, masks: SmoothMasks, x: Tensor, target: Target, areas: Sequence[float], iterations: int
) -> Tensor:
    """Masks (n, H, W) for pictures (n, channels, H, W), each of its own area.

    Pictures share nothing but their passes: so that each has the same mask, to the last bit, alone and beside others.
    """
    levels, places = [blurred(picture) for picture in x], x.new_ones(len(x), *masks.grid)
    pull, weight, best = torch.zeros_like(places), _WEIGHT, x[:, 0]
    for step in range(iterations):
        places.requires_grad_()
        with torch.enable_grad():
            wide = [masks(own) for own in places.split(1)]
            narrow = [masks.cropped(one) for one in wide]
            shown = torch.cat([between(*pair) for pair in zip(levels, narrow, strict=True)])
            logits = anatomy.logits(shown.flip(3) if step % 2 == 0 else shown, normalised=True)
            pairs = zip(wide, areas, strict=True)
            distance = torch.cat([(one - ideal(one.detach(), a)).square().mean((1, 2)) for one, a in pairs])
            (gradient,) = torch.autograd.grad((target.score(logits) - weight * distance).sum(), places)
        anatomy.passes.backward += len(x)
        if anatomy.tick is not None:
            anatomy.tick(len(x))
        best = torch.cat(narrow).detach()
        pull = gradient if step == 0 else _MOMENTUM * pull + (1 - _MOMENTUM) * gradient
        places = (places.detach() + _RATE * pull).clamp(0, 1)
        weight *= _GROWTH
    return best
