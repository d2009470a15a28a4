"""Opti-CAM's twin, step by step in float64."""

from __future__ import annotations

import torch
from oracles import as_maps, layer_output, masked, oracle, scaled, upsampled, weighted
from torch import Tensor, nn


@oracle("opticam")
def slow_opticam(
    model: nn.Module,
    x: Tensor,
    c: int,
    layer: str,
    *,
    objective: str = "logit",
    normalize: str = "minmax",
    solver: str = "fast",
    iterations: int | None = None,
    lr: float | None = None,
    early_stop: bool | None = None,
) -> Tensor:
    """S(u) = sum_k softmax(u)_k ReLU(A_k) with u = argmax of what class c scores on the picture under n(up(S(u))).

    Adam from u = 0.5; where it stops early: at ten checks, the first at the start, if it is worse than at the check
    before. The best of all maps is kept.
    """
    fast = solver == "fast"
    iterations, lr = iterations or (25 if fast else 100), lr or (0.7 if fast else 0.1)
    beta1, beta2 = (0.3, 0.3) if fast else (0.9, 0.999)
    early_stop = not fast if early_stop is None else early_stop
    with torch.no_grad():
        output, logits = layer_output(model, x, layer)
    a, y = as_maps(output).clamp_min(0), logits[c]
    u = torch.full((len(a),), 0.5, dtype=torch.float64)
    momentum, square = torch.zeros_like(u), torch.zeros_like(u)
    best, best_value, last_check = torch.zeros_like(a[0]), -float("inf"), -float("inf")
    for step in range(iterations):
        u.requires_grad_()
        saliency = weighted(u.exp() / u.exp().sum(), a)
        mask = opticam_mask(upsampled(saliency, x.shape[2], x.shape[3]), normalize)
        value = opticam_value(masked(model, x, mask), c, y, objective)
        (ascent,) = torch.autograd.grad(value, u)
        if value.item() > best_value:
            best, best_value = saliency.detach(), value.item()
        if early_stop and step % max(1, iterations // 10) == 0:
            if value.item() < last_check:
                break
            last_check = value.item()
        momentum = beta1 * momentum + (1 - beta1) * ascent
        square = beta2 * square + (1 - beta2) * ascent**2
        first, second = momentum / (1 - beta1 ** (step + 1)), square / (1 - beta2 ** (step + 1))
        rate = lr * min(1, (iterations - step) / (0.6 * iterations)) if fast else lr  # falls after two fifths
        u = (u + rate * first / (second.sqrt() + 1e-8)).detach()
    return best


def opticam_mask(wide: Tensor, normalize: str) -> Tensor:
    """The mask of a map (H, W)."""
    if normalize == "max":
        return wide / wide.max()
    if normalize == "sigmoid":
        return 1 / (1 + (-wide).exp())
    if normalize == "tanh":
        return (wide.exp() - (-wide).exp()) / (wide.exp() + (-wide).exp())
    return scaled(wide)


def opticam_value(logits: Tensor, c: int, y: Tensor, objective: str) -> Tensor:
    """What Opti-CAM maximises, from the masked picture's logits (classes,) and the whole picture's score y."""
    if objective == "probability":
        return logits.exp()[c] / logits.exp().sum()
    if objective == "margin":
        return logits[c] - torch.stack([logit for i, logit in enumerate(logits) if i != c]).max()
    if objective == "difference":
        return (logits[c] - y).abs().neg()
    return logits[c]
