"""Ablation-CAM: a channel weighs what its absence costs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.methods.registry import register
from interp_zoo.explain.targets import Target


@register(
    "ablationcam",
    paper="Desai and Ramaswamy, WACV 2020",
    cost="1 forward, C tails (1 tail backward where the tail is affine)",
)
def ablationcam(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """Weighs each channel by the score's relative drop when the channel is set to 0: (y - y_k) / y.

    Where the tail is affine in A and the score is a logit, the drop is exactly sum_ij G A, for all channels at once. A
    score y below 0 turns the weights' sign, as the paper's formula has it. In 16 bit, drops are rounded away by the
    logits that they are between: a pass and the tails are run in 32.
    """
    split = anatomy.split(pixels)
    maps = split.maps.detach()
    full = target.score(split.logits.detach())
    if target.function is None and anatomy.tail_is_affine(pixels):
        _, gradients = anatomy.maps_and_gradients(pixels, target)
        drop = (gradients * maps).sum((2, 3))
    else:
        exact = replace(anatomy.in_full(), passes=anatomy.passes)
        drop = torch.stack([_drops(exact, pixels, target, i) for i in range(len(maps))])
    weights = drop / torch.where(full == 0, 1, full)[:, None]
    return (weights[:, :, None, None] * maps).sum(1)


def _drops(anatomy: Anatomy, pixels: Tensor, target: Target, i: int) -> Tensor:
    """How much the score of picture i falls without each channel, (C,), by running the tail for each."""
    split = anatomy.split(pixels)
    maps, full = split.maps.detach()[i], target.score(split.logits.detach())[i]
    drops = []
    with torch.no_grad():
        for channels in anatomy.chunks(len(maps)):
            which = torch.arange(channels.start, channels.stop, device=maps.device)
            ablated = maps.repeat(len(which), 1, 1, 1)
            ablated[torch.arange(len(which)), which] = 0
            drops.append(full - target[i : i + 1].score(anatomy.tail(pixels, i, ablated)))
    return torch.cat(drops)
