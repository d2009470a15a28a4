"""Opti-CAM: the weights of the maps are optimised, picture by picture, so that the masked picture scores best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from interp_zoo.explain import masking
from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.methods.registry import register
from interp_zoo.explain.targets import Target

Objective = Literal["logit", "probability", "margin", "difference"]
Solver = Literal["fast", "adam"]
_OBJECTIVES = ("logit", "probability", "margin", "difference")
_CHECKS = 10  # how often, over all iterations, a picture may stop


@dataclass(frozen=True)
class _Solver:
    """Adam, with a learning rate that falls to nothing from a share of the steps on."""

    iterations: int
    lr: float
    betas: tuple[float, float]
    falls_from: float

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        left = 1 - step / self.iterations
        return self.lr * min(1.0, left / (1 - self.falls_from)) if self.falls_from < 1 else self.lr


_SOLVERS = {"adam": _Solver(100, 0.1, (0.9, 0.999), 1.0), "fast": _Solver(40, 1.0, (0.8, 0.8), 0.5)}


@register(
    "opticam",
    paper="Zhang, Torres, Sicre, Avrithis and Ayache, CVIU 2024",
    cost="up to 102 forward, 100 backward (fast: 42, 40)",
)
def opticam(
    anatomy: Anatomy,
    pixels: Tensor,
    target: Target,
    *,
    objective: Objective = "logit",
    solver: Solver = "adam",
    iterations: int | None = None,
    lr: float | None = None,
    early_stop: bool = True,
) -> Tensor:
    """Optimises the maps' weights so that the picture, masked by their sum, scores best.

    S(u) = sum_k softmax(u)_k ReLU(A_k), with u maximising the score of the picture masked by n(up(S(u))).
    Each picture is optimised by itself (u = 0.5 at first), stops by itself, and gives its best map, so that neighbours
    in the batch change nothing. Where the network has BatchNorms, masked pictures go through a copy in which they are
    folded into the convolutions.

    Args:
        anatomy: the cut model.
        pixels: pictures (B, channels, H, W) in [0, 1].
        target: what is explained.
        objective: what is maximised on the masked picture: the target's logit (the paper), its probability, its margin
            over the best other class, or minus its distance to the unmasked picture's score ("difference").
        solver: "adam" as in the paper, or "fast": fewer and larger steps with shorter memories, whose size falls to
            nothing over the second half.
        iterations: the most steps; None for the solver's own, 100 or 40.
        lr: the learning rate; None for the solver's own, 0.1 or 1.
        early_stop: whether a picture stops when, at one of ten checks, it is worse than at the check before.
    """
    if objective not in _OBJECTIVES:
        raise ValueError(f'`objective` is "{objective}", but must be one of {", ".join(_OBJECTIVES)}')
    if solver not in _SOLVERS:
        raise ValueError(f'`solver` is "{solver}", but must be one of {", ".join(_SOLVERS)}')
    how = _SOLVERS[solver]
    how = replace(how, iterations=how.iterations if iterations is None else iterations, lr=how.lr if lr is None else lr)
    if not how.lr > 0:
        raise ValueError(f"`lr` is {lr}, but must be above 0")
    if how.iterations < 1:
        raise ValueError(f"`iterations` is {iterations}, but must be at least 1")
    if target.function is not None and objective in ("probability", "margin"):
        raise ValueError(
            f'`objective` "{objective}" needs a class as target: use "logit" with a function of the logits'
        )
    anatomy.hasten(pixels)
    best = []
    for i in range(len(pixels)):
        # A batch's maps differ from a picture's own in the last digits, and a hundred steps of Adam make that visible.
        one, row = pixels if len(pixels) == 1 else pixels[i : i + 1], target[i : i + 1]
        split = anatomy.split(one)
        maps, full = split.maps.detach()[0].relu(), row.score(split.logits.detach())[0]
        best.append(_optimise(anatomy, maps, one, row, full, objective, how, early_stop=early_stop))
    return torch.stack(best)


def _optimise(
    anatomy: Anatomy,
    maps: Tensor,
    pixels: Tensor,
    target: Target,
    full: Tensor,
    objective: Objective,
    how: _Solver,
    *,
    early_stop: bool,
) -> Tensor:
    """The best S (h, w) for one picture (1, channels, H, W) with maps (C, h, w) and unmasked score `full`."""
    u = maps.new_full((len(maps),), 0.5, requires_grad=True)
    adam = torch.optim.Adam([u], lr=how.lr, betas=how.betas)
    every = max(1, how.iterations // _CHECKS)
    best, best_value, checked = maps.mean(0), -torch.inf, -torch.inf
    for step in range(how.iterations):
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
        adam.param_groups[0]["lr"] = how.lr_at(step)
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
