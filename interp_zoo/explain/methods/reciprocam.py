"""Recipro-CAM: a place weighs what the tail makes of it alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.methods.registry import register
from interp_zoo.explain.targets import Target


@register("reciprocam", paper="Byun and Lee, CVPR workshops 2024", cost="1 forward, hw tails")
def reciprocam(
    anatomy: Anatomy,
    pixels: Tensor,
    target: Target,
    *,
    score: Literal["probability", "logit"] = "probability",
    gaussian: bool = True,
) -> Tensor:
    """The score of A with all places but one masked out, for each place; no gradient.

    Args:
        anatomy: the cut model.
        pixels: pictures (B, channels, H, W) in [0, 1].
        target: what is explained.
        score: the target's probability (the authors), or its logit; functions of the logits are taken as they are.
        gaussian: whether the one place is a 3 x 3 binomial window, 1/4 in its middle (the authors), or that place
            alone.
    """
    if score not in ("logit", "probability"):
        raise ValueError(f'`score` is "{score}", but must be "logit" or "probability"')
    maps = anatomy.split(pixels).maps.detach()
    h, w = maps.shape[2:]
    windows = torch.eye(h * w, dtype=maps.dtype, device=maps.device).view(-1, 1, h, w)
    if gaussian:
        row = maps.new_tensor([0.25, 0.5, 0.25])
        windows = F.conv2d(windows, (row[:, None] * row)[None, None], padding=1)
    rows = []
    with torch.no_grad():
        for i in range(len(maps)):
            one = target[i : i + 1]
            rate = one.score if score == "logit" or one.function is not None else one.probability
            rows.append(torch.cat([rate(anatomy.tail(pixels, i, maps[i] * windows[s])) for s in anatomy.chunks(h * w)]))
    return torch.stack(rows).view(-1, h, w)
