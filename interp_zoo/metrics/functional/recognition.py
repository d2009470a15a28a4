"""How the target's probability changes when the picture is masked by its map, a figure a picture, in percent.

Definitions: Chattopadhay et al., WACV 2018 (drop, increase); Zhang et al. (Opti-CAM), CVIU 2024 (gain).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Protocol = Literal["papers", "pytorch-grad-cam", "torchcam"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
_TORCHCAM_EPS = 1e-7
_ROUNDING = 1e-6  # by which a sum of exponentials may miss 1


def average_drop(before: Tensor, after: Tensor, *, protocol: Protocol = "papers") -> Tensor:
    """The share of the target's probability that is lost, (N,) in percent, 0 where it rises. Low is good.

    Args:
        before: the target's probability on the picture, (N,) in [0, 1].
        after: the same on the masked picture.
        protocol: whose figure it is. "papers": as above. "pytorch-grad-cam": what is lost, not its share (their
            DropInConfidence, times 100). "torchcam": the share, with 1e-7 added to what it is a share of (their
            ClassificationMetric, times 100). Both take any scores, torchcam logits by default, and lay masks on the
            normalised picture: what they mask out is the mean colour, where the papers' is black.

    Raises:
        ValueError: for other shapes, values outside of [0, 1] (in the papers' protocol), or an unknown protocol.
    """
    _check(before, after, protocol)
    lost = 100 * (before - after).relu()
    if protocol == "pytorch-grad-cam":
        return lost
    if protocol == "torchcam":
        return lost / (before + _TORCHCAM_EPS)
    return lost / before.clamp_min(torch.finfo(before.dtype).tiny)


def average_increase(before: Tensor, after: Tensor, *, protocol: Protocol = "papers") -> Tensor:
    """100 where the target's probability rises, else 0, (N,). High is good. Arguments as in `average_drop`.

    The same in all protocols, but for the scores that they take.
    """
    _check(before, after, protocol)
    return 100 * (after > before).to(before.dtype).masked_fill(before.isnan() | after.isnan(), torch.nan)


def average_gain(before: Tensor, after: Tensor) -> Tensor:
    """The share of the missing probability that is gained, (N,) in percent, 0 where it falls. High is good.

    Finite for p = 1, where nothing is missing and nothing can be gained. Arguments as in `average_drop`.
    """
    _check(before, after)
    return 100 * (after - before).relu() / (1 - before).clamp_min(torch.finfo(before.dtype).tiny)


def check_protocol(protocol: str) -> None:
    """Raises ValueError for a protocol that there is not."""
    if protocol not in PROTOCOLS:
        raise ValueError(f'`protocol` is "{protocol}", but must be one of {", ".join(PROTOCOLS)}')


def _check(before: Tensor, after: Tensor, protocol: Protocol = "papers") -> None:
    check_protocol(protocol)
    for name, p in (("before", before), ("after", after)):
        if not p.is_floating_point():
            raise TypeError(f"`{name}` must hold floating point numbers, not {p.dtype}: give probabilities")
        if p.ndim != 1 or p.shape != before.shape:
            raise ValueError(f"`{name}` has shape {tuple(p.shape)}, but both must be (N,), one probability a picture")
        if protocol == "papers" and bool(((p < -_ROUNDING) | (p > 1 + _ROUNDING)).any()):
            raise ValueError(f"`{name}` holds values outside of [0, 1]: give probabilities, not logits")
