"""Methods that read the attention of plain vision transformers; no map but the patch tokens' own.

In the formulas A_l is the matrix (heads, N, N) of block l after its softmax, one row a query, and s the score.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.cutting import classifier_inputs, projection
from interp_zoo.explain.methods.attending import Attending, needs_attention
from interp_zoo.explain.methods.registry import register
from interp_zoo.explain.targets import Target

_NEEDS = "a plain vision transformer"


@register(
    "attention_rollout",
    paper="Abnar and Zuidema, ACL 2020",
    cost="2 forward",
    needs=_NEEDS,
    watch=needs_attention("attention_rollout"),
)
def attention_rollout(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """What the class token attends to, block after block: the product of (mean over heads of A_l + 1) / 2.

    The same for every class. Where the head reads several tokens (two class tokens, or the patches' average), the mean
    over their rows.
    """
    attending = Attending("attention_rollout", anatomy, pixels)
    with classifier_inputs(anatomy.model) as read:
        split = attending.split(pixels)
    (gradient,) = torch.autograd.grad(projection(read or [split.logits]), split.maps)
    rows = (gradient != 0).any(1)[:, :, 0]  # those that the head reads
    rollout = _identity(attending)
    for matrix in attending.matrices:
        rollout = (_wide(matrix).mean(1) + _identity(attending)) / 2 @ rollout
    return attending.on_grid(_mean_of(rows, rollout))


@register(
    "gradient_rollout",
    paper="Chefer, Gur and Wolf, ICCV 2021",
    cost="2 forward, 1 backward",
    needs=_NEEDS,
    watch=needs_attention("gradient_rollout"),
)
def gradient_rollout(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """Attention rollout for a class: R <- R + (mean over heads of ReLU(ds/dA_l * A_l)) R, from R = 1.

    The class token's row of R - 1; where the head reads several tokens, the mean over their rows. (The 1 is no part of
    a class token's map, and the same at each place else.)
    """
    attending = Attending("gradient_rollout", anatomy, pixels)
    with torch.enable_grad(), attending.record("whole"):
        score = target.score(anatomy.logits(pixels.detach())).sum()
    attending.check(len(pixels))
    gradients = torch.autograd.grad(score, attending.matrices, allow_unused=True, materialize_grads=True)
    anatomy.passes.backward += len(pixels)
    rollout = torch.zeros_like(_wide(attending.matrices[0].detach()[:, 0]))  # R - 1, which may be far below 1
    for matrix, gradient in zip(attending.matrices, gradients, strict=True):
        relevance = (_wide(gradient) * _wide(matrix.detach())).relu().mean(1)
        rollout = rollout + relevance + relevance @ rollout
    rows = (gradients[-1] != 0).any(3).any(1)  # those that the head reads
    return attending.on_grid(_mean_of(rows, rollout))


@register(
    "legrad",
    paper="Bousselham et al., ICCV 2025, arXiv 2404.03214",
    cost="2 forward, a tail and its backward for each block",
    needs=_NEEDS,
    watch=needs_attention("legrad"),
)
def legrad(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """How attention acts on the score at each block: the mean over blocks, heads and queries of ReLU(ds_l/dA_l).

    s_l is the score when the head (all that follows the last block) reads the tokens of block l.
    """
    attending = Attending("legrad", anatomy, pixels)
    last = attending.split(pixels, "block").output
    tokens = [*attending.tokens, last]  # (B, N, C) after each block, each in the graph of that block's A alone
    scores: list[Tensor] = []
    for i in range(len(pixels)):
        for blocks in anatomy.chunks(len(tokens)):
            with torch.enable_grad():
                own = torch.stack([t[i] for t in tokens[blocks]])  # (n, N, C)
                logits = attending.after.tail(pixels, i, own.transpose(1, 2)[..., None])
                scores.append(target[i : i + 1].score(logits).sum())
    gradients = torch.autograd.grad(torch.stack(scores).sum(), attending.matrices)
    anatomy.passes.backward += len(pixels) * len(tokens)
    return attending.on_grid(torch.stack([_wide(g).relu().mean((1, 2)) for g in gradients]).mean(0))


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _identity(attending: Attending) -> Tensor:
    matrix = attending.matrices[0]
    return torch.eye(attending.count, dtype=_wide(matrix).dtype, device=matrix.device)


def _mean_of(rows: Tensor, matrix: Tensor) -> Tensor:
    """The mean, (B, N), of the rows (B, N) of a matrix (B, N, N) that are marked."""
    weights = rows.to(matrix.dtype)
    return (weights[:, None] @ matrix)[:, 0] / weights.sum(1, keepdim=True).clamp_min(1)
