"""How the target's probability changes when the picture is masked by its map, a figure a picture, in percent.

Definitions: Chattopadhay et al., WACV 2018 (drop, increase); Zhang et al. (Opti-CAM), CVIU 2024 (gain).
"""

from __future__ import annotations

import torch
from torch import Tensor


def average_drop(before: Tensor, after: Tensor) -> Tensor:
    """The share of the target's probability that is lost, (N,) in percent, 0 where it rises. Low is good.

    Args:
        before: the target's probability on the picture, (N,) in [0, 1].
        after: the same on the masked picture.
    """
    _check(before, after)
    return 100 * (before - after).relu() / before.clamp_min(torch.finfo(before.dtype).tiny)


def average_increase(before: Tensor, after: Tensor) -> Tensor:
    """100 where the target's probability rises, else 0, (N,). High is good. Arguments as in `average_drop`."""
    _check(before, after)
    return 100 * (after > before).to(before.dtype).masked_fill(before.isnan() | after.isnan(), torch.nan)


def average_gain(before: Tensor, after: Tensor) -> Tensor:
    """The share of the missing probability that is gained, (N,) in percent, 0 where it falls. High is good.

    Finite for p = 1, where nothing is missing and nothing can be gained. Arguments as in `average_drop`.
    """
    _check(before, after)
    return 100 * (after - before).relu() / (1 - before).clamp_min(torch.finfo(before.dtype).tiny)


def _check(before: Tensor, after: Tensor) -> None:
    for name, p in (("before", before), ("after", after)):
        if p.ndim != 1 or p.shape != before.shape:
            raise ValueError(f"`{name}` has shape {tuple(p.shape)}, but both must be (N,), one probability a picture")
        if bool(((p < 0) | (p > 1)).any()):
            raise ValueError(f"`{name}` holds values outside of [0, 1]: give probabilities, not logits")
