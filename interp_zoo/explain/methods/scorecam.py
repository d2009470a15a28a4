"""Score-CAM: a channel weighs what it scores as a mask."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from interp_zoo.explain import masking
from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.methods.checks import MaskSpace, is_normalised
from interp_zoo.explain.methods.registry import register
from interp_zoo.explain.targets import Target


@register("scorecam", paper="Wang et al., CVPR workshops 2020", cost="1 + C forward")
def scorecam(
    anatomy: Anatomy,
    pixels: Tensor,
    target: Target,
    *,
    score: Literal["logit", "probability"] = "logit",
    softmax: bool = True,
    mask_space: MaskSpace = "pixels",
    align_corners: bool = False,
) -> Tensor:
    """Weighs each channel by the score of the picture under the channel as a mask, softmax over channels.

    The paper's baseline f(x_b) would fall out of the softmax and is left out.

    Args:
        anatomy: the cut model.
        pixels: pictures (B, channels, H, W) in [0, 1].
        target: what is explained.
        score: the masked picture's logit (the paper), or its probability (the CA-Stream authors).
        softmax: whether weights go through a softmax over channels (the CA-Stream authors: no).
        mask_space: where masks multiply: pixels in [0, 1] (the paper), or what the model takes (pytorch-grad-cam).
        align_corners: how masks are upsampled (pytorch-grad-cam and the CA-Stream authors: True).
    """
    if score not in ("logit", "probability"):
        raise ValueError(f'`score` is "{score}", but must be "logit" or "probability"')
    normalised = is_normalised(mask_space)
    if score == "probability" and target.function is not None:
        raise ValueError('`score` "probability" needs a class as target: use "logit" with a function of the logits')
    maps = anatomy.split(pixels).maps.detach()
    anatomy.hasten(pixels)
    size = (pixels.shape[2], pixels.shape[3])
    base = anatomy.normalise(pixels) if normalised else pixels
    weights = maps.new_empty(maps.shape[:2])
    with torch.no_grad():
        for i in range(len(maps)):
            rate = target[i : i + 1].score if score == "logit" else target[i : i + 1].probability
            for channels in anatomy.chunks(maps.shape[1]):
                masks = masking.minmax(masking.up(maps[i, channels], size, align_corners=align_corners))
                masked = masking.apply(base[i : i + 1], masks)
                weights[i, channels] = rate(anatomy.logits(masked, normalised=normalised)).to(weights)
    weights = weights.softmax(1) if softmax else weights
    return (weights[:, :, None, None] * maps).sum(1)
