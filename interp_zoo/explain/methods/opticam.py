"""Opti-CAM: the weights of the maps are optimised, picture by picture, so that the masked picture scores best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from interp_zoo.explain import masking
from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.methods.checks import above_zero, at_least_one, one_of
from interp_zoo.explain.methods.registry import register
from interp_zoo.explain.targets import Target

Objective = Literal["logit", "probability", "margin", "difference"]
Normalize = Literal["minmax", "max", "sigmoid", "tanh"]
Solver = Literal["fast", "adam"]
_OBJECTIVES = ("logit", "probability", "margin", "difference")
_CHECKS = 10  # how often, over all iterations, a picture may stop


@dataclass(frozen=True)
class _Solver:
    """Adam, with a learning rate that falls to nothing from a share of the steps on (1: not at all)."""

    iterations: int
    lr: float
    betas: tuple[float, float]
    falls_from: float
    early_stop: bool

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        left = 1 - step / self.iterations
        return self.lr * min(1.0, left / (1 - self.falls_from)) if self.falls_from < 1 else self.lr


_SOLVERS = {
    "adam": _Solver(100, 0.1, (0.9, 0.999), 1.0, early_stop=True),
    "fast": _Solver(25, 0.7, (0.3, 0.3), 0.4, early_stop=False),  # whose last steps gain most
}


_MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "minmax": masking.minmax,
    "max": masking.by_largest,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@register(
    "opticam",
    paper="Zhang, Torres, Sicre, Avrithis and Ayache, CVIU 2024",
    cost="1 + iterations forward, iterations backward (iterations = 25; adam: up to 100)",
)
def opticam(
    anatomy: Anatomy,
    pixels: Tensor,
    target: Target,
    *,
    objective: Objective = "logit",
    normalize: Normalize = "minmax",
    solver: Solver = "fast",
    iterations: int | None = None,
    lr: float | None = None,
    early_stop: bool | None = None,
) -> Tensor:
    """Optimises the maps' weights so that the picture, masked by their sum, scores best.

    S(u) = sum_k softmax(u)_k ReLU(A_k), with u maximising the score of the picture masked by n(up(S(u))).
    Each picture is optimised for itself (u = 0.5 at first), stops by itself, and gives its best map. Pictures go
    through the network together where that changes no bit of what it makes of each. Where it has BatchNorms, they go
    through a copy in which these are folded into the convolutions.

    Args:
        anatomy: the cut model.
        pixels: pictures (B, channels, H, W) in [0, 1].
        target: what is explained.
        objective: what is maximised on the masked picture: the target's logit (the paper), its probability, its margin
            over the best other class, or minus its distance to the unmasked picture's score ("difference").
        normalize: how up(S) becomes a mask on the way: (S - min) / (max - min) as in the paper, S / max, 1 / (1 + e^-S)
            or tanh(S), as in the authors' code. The map that is shown is scaled as every method's.
        solver: "adam" as in the paper, or "fast": fewer and larger steps of an Adam with a short memory, whose size
            falls to nothing after two fifths. docs/benchmark_opticam.md has what they take, docs/reality-check what
            they reach.
        iterations: how many steps; None for the solver's own: 25 of "fast", at most 100 of "adam".
        lr: the learning rate; None for the solver's own: 0.7, or 0.1.
        early_stop: whether a picture stops when, at one of ten checks, it is worse than at the check before; None for
            the solver's own: "adam" does.
    """
    one_of(_OBJECTIVES, objective=objective)
    one_of(_MASKS, normalize=normalize)
    one_of(_SOLVERS, solver=solver)
    given: dict[str, Any] = {"iterations": iterations, "lr": lr, "early_stop": early_stop}
    how = replace(_SOLVERS[solver], **{name: value for name, value in given.items() if value is not None})
    above_zero(lr=how.lr)
    at_least_one(iterations=how.iterations)
    if target.function is not None and objective in ("probability", "margin"):
        raise ValueError(
            f'`objective` "{objective}" needs a class as target: use "logit" with a function of the logits'
        )
    anatomy.hasten(pixels)
    maps, full = [], []
    for i in range(len(pixels)):  # a batch's maps differ from a picture's own in the last digits, which steps enlarge
        split = anatomy.split(pixels if len(pixels) == 1 else pixels[i : i + 1])
        maps.append(split.maps.detach()[0].relu())
        full.append(target[i : i + 1].score(split.logits.detach())[0])
    goal = _Goal(anatomy, torch.stack(maps), pixels, target, torch.stack(full), objective, _MASKS[normalize])
    return _optimise(goal, how)


@dataclass(frozen=True)
class _Goal:
    """What is maximised for n pictures (n, channels, H, W) with maps (n, C, h, w) and unmasked scores `full` (n,)."""

    anatomy: Anatomy
    maps: Tensor
    pixels: Tensor
    target: Target
    full: Tensor
    objective: Objective
    normalize: Callable[[Tensor], Tensor]

    def of(self, rows: list[int]) -> _Goal:
        """That of some of the pictures."""
        own = {name: getattr(self, name)[rows] for name in ("maps", "pixels", "target", "full")}
        return replace(self, **own)

    def parts(self, rows: list[int]) -> list[tuple[list[int], _Goal]]:
        """Some rows as few goals, if they change nothing for each other; else a goal each."""
        return [(some, self.of(some)) for some in self.anatomy.together(rows, self.pixels, self.target)]

    def climb(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """S (n, h, w), what it is worth (n,), and which way up that is, (n, C), for u (n, C)."""
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            weighed = zip(u.softmax(1), self.maps, strict=True)  # one by one: in batches, sums round otherwise
            saliency = torch.stack([(w @ a.flatten(1)).view(a.shape[1:]) for w, a in weighed])
            mask = self.normalize(masking.up(saliency, (self.pixels.shape[2], self.pixels.shape[3])))
            value = self._value(self.anatomy.logits(masking.apply(self.pixels, mask)))
            (gradient,) = torch.autograd.grad(value.sum(), u)
        self.anatomy.passes.backward += len(u)
        if self.anatomy.tick is not None:
            self.anatomy.tick(len(u))
        return saliency.detach(), value.detach(), gradient

    def _value(self, logits: Tensor) -> Tensor:
        if self.objective == "probability":
            return self.target.probability(logits)
        if self.objective == "margin":
            return self.target.margin(logits)
        score = self.target.score(logits)
        return score if self.objective == "logit" else -(score - self.full).abs()


def _optimise(goal: _Goal, how: _Solver) -> Tensor:
    """The best S of each picture, (n, h, w)."""
    u = goal.maps.new_full(goal.maps.shape[:2], 0.5)
    adam = torch.optim.Adam([u], lr=how.lr, betas=how.betas)
    every = max(1, how.iterations // _CHECKS)
    best, best_value, checked = goal.maps.mean(1), u.new_full((len(u),), -torch.inf), u.new_full((len(u),), -torch.inf)
    parts = goal.parts(list(range(len(u))))
    for step in range(how.iterations):
        u.grad, stopped = torch.zeros_like(u), set()
        for rows, part in parts:
            saliency, value, gradient = part.climb(u[rows])
            better = value > best_value[rows]
            best[rows] = torch.where(better[:, None, None], saliency, best[rows])
            best_value[rows] = torch.where(better, value, best_value[rows])
            u.grad[rows] = -gradient
            if how.early_stop and step % every == 0:
                stopped |= {i for i, worse in zip(rows, (value < checked[rows]).tolist(), strict=True) if worse}
                checked[rows] = value
        if stopped:
            left = [i for rows, _ in parts for i in rows if i not in stopped]
            if not left:
                break
            parts = goal.parts(left)
        adam.param_groups[0]["lr"] = how.lr_at(step)
        adam.step()
    return best
