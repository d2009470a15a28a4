"""Opti-CAM: the weights of the maps are optimised, picture by picture, so that the masked picture scores best."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from interp_zoo.explain import masking
from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.methods.registry import register
from interp_zoo.explain.targets import Target

Objective = Literal["logit", "probability", "margin", "difference"]
_OBJECTIVES = ("logit", "probability", "margin", "difference")
_CHECKS = 10  # how often, over all iterations, a picture may stop


@register(
    "opticam",
    paper="Zhang, Torres, Sicre, Avrithis and Ayache, CVIU 2024",
    cost="up to 102 forward, 100 backward",
)
def opticam(
    anatomy: Anatomy,
    pixels: Tensor,
    target: Target,
    *,
    objective: Objective = "logit",
    iterations: int = 100,
    lr: float = 0.1,
    early_stop: bool = True,
) -> Tensor:
    """Optimises the maps' weights so that the picture, masked by their sum, scores best.

    S(u) = sum_k softmax(u)_k ReLU(A_k), with u maximising the score of the picture masked by n(up(S(u))).
    Each picture is optimised by itself (Adam, u = 0.5 at first), stops by itself, and gives its best map, so that
    neighbours in the batch change nothing.

    Args:
        anatomy: the cut model.
        pixels: pictures (B, channels, H, W) in [0, 1].
        target: what is explained.
        objective: what is maximised on the masked picture: the target's logit (the paper), its probability, its margin
            over the best other class, or minus its distance to the unmasked picture's score ("difference").
        iterations: the most steps.
        lr: Adam's learning rate.
        early_stop: whether a picture stops when, at one of ten checks, it is worse than at the check before.
    """
    if objective not in _OBJECTIVES:
        raise ValueError(f'`objective` is "{objective}", but must be one of {", ".join(_OBJECTIVES)}')
    if lr <= 0:
        raise ValueError(f"`lr` is {lr}, but must be above 0")
    if iterations < 1:
        raise ValueError(f"`iterations` is {iterations}, but must be at least 1")
    if target.function is not None and objective in ("probability", "margin"):
        raise ValueError(
            f'`objective` "{objective}" needs a class as target: use "logit" with a function of the logits'
        )
    best = []
    for i in range(len(pixels)):
        # A batch's maps differ from a picture's own in the last digits, and a hundred steps of Adam make that visible.
        one, row = pixels if len(pixels) == 1 else pixels[i : i + 1], target[i : i + 1]
        split = anatomy.split(one)
        maps, full = split.maps.detach()[0].relu(), row.score(split.logits.detach())[0]
        best.append(_optimise(anatomy, maps, one, row, full, objective, iterations, lr, early_stop))
    return torch.stack(best)


def _optimise(
    anatomy: Anatomy,
    maps: Tensor,
    pixels: Tensor,
    target: Target,
    full: Tensor,
    objective: Objective,
    iterations: int,
    lr: float,
    early_stop: bool,
) -> Tensor:
    """The best S (h, w) for one picture (1, channels, H, W) with maps (C, h, w) and unmasked score `full`."""
    u = maps.new_full((len(maps),), 0.5, requires_grad=True)
    adam = torch.optim.Adam([u], lr=lr)
    every = max(1, iterations // _CHECKS)
    best, best_value, checked = maps.mean(0), -torch.inf, -torch.inf
    for step in range(iterations):
        with torch.enable_grad():
            saliency = torch.einsum("k,khw->hw", u.softmax(0), maps)
            mask = masking.minmax(masking.up(saliency[None], (pixels.shape[2], pixels.shape[3])))
            value = _value(anatomy.logits(masking.apply(pixels, mask)), target, full, objective)
            (gradient,) = torch.autograd.grad(value, u)
        anatomy.passes.backward += 1
        if anatomy.tick is not None:
            anatomy.tick(1)
        now = value.item()
        if now > best_value:
            best, best_value = saliency.detach(), now
        if early_stop and step % every == 0:
            if now < checked:
                break
            checked = now
        u.grad = -gradient
        adam.step()
    return best


def _value(logits: Tensor, target: Target, full: Tensor, objective: Objective) -> Tensor:
    """What is maximised, a scalar."""
    if objective == "probability":
        return target.probability(logits)[0]
    if objective == "margin":
        return target.margin(logits)[0]
    score = target.score(logits)[0]
    return score if objective == "logit" else -(score - full).abs()
