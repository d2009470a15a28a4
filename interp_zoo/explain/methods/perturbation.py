"""Methods that hide parts of the picture, and look what that does to the score; no gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from interp_zoo.explain import masking
from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.methods.checks import MaskSpace, at_least_one, is_normalised, usable_seed
from interp_zoo.explain.methods.registry import register
from interp_zoo.explain.targets import Target

Score = Literal["probability", "logit"]


@register(
    "occlusion",
    paper="Zeiler and Fergus, ECCV 2014",
    cost="1 + windows forward (362 for a square picture)",
    at_picture=True,
)
def occlusion(
    anatomy: Anatomy,
    pixels: Tensor,
    target: Target,
    *,
    window: float = 0.15,
    stride: float = 0.05,
    score: Score = "logit",
) -> Tensor:
    """By how much the score falls when a window is hidden under the mean colour: a pixel's mean over its windows.

    Args:
        anatomy: the cut model.
        pixels: pictures.
        target: what is explained.
        window: the window's side, as a share of the picture's short side.
        stride: from one window to the next, as a share of the picture's short side. The last windows are cut off.
        score: the target's logit (as captum), or its probability (the paper); functions of the logits as they are.
    """
    if not 0 < stride <= window <= 1:
        raise ValueError(f"`stride` is {stride} and `window` {window}, but must be 0 < stride <= window <= 1")
    x = anatomy.normalise(pixels.detach())
    side, step = (max(1, round(share * min(x.shape[2:]))) for share in (window, stride))
    tops, lefts = (range(0, math.ceil((length - side) / step) * step + 1, step) for length in x.shape[2:])
    corners = [(top, left) for top in tops for left in lefts]
    anatomy.hasten(pixels)
    full = _rate(target, score)(anatomy.split(pixels).logits.detach())
    drops, times = full.new_zeros(len(x), *x.shape[2:]), full.new_zeros(x.shape[2:])
    for top, left in corners:
        times[top : top + side, left : left + side] += 1
    with torch.no_grad():
        for i in range(len(x)):
            for some in anatomy.chunks(len(corners)):
                left_over = x.new_ones(some.stop - some.start, *x.shape[2:])
                for mask, (top, left) in zip(left_over, corners[some], strict=True):
                    mask[top : top + side, left : left + side] = 0
                logits = anatomy.logits(masking.apply(x[i : i + 1], left_over), normalised=True)
                drop = full[i] - _rate(target[i : i + 1], score)(logits)
                drops[i] += torch.einsum("n,nhw->hw", drop, 1 - left_over.to(drop))
    return drops / times


@register(
    "rise", paper="Petsiuk, Das and Saenko, BMVC 2018", cost="1 + n forward (n = 8000)", at_picture=True, slow=True
)
def rise(
    anatomy: Anatomy,
    pixels: Tensor,
    target: Target,
    *,
    n: int = 8000,
    grid: int = 7,
    p: float = 0.5,
    seed: int = 0,
    score: Score = "probability",
    mask_space: MaskSpace = "normalised",
) -> Tensor:
    """The mean of random masks, each weighted by what the picture scores under it: sum_i f(x M_i) M_i / (n p).

    A mask is a grid of ones and zeros, upsampled until one cell of it juts out, and cropped at a random place.

    Args:
        anatomy: the cut model.
        pixels: pictures.
        target: what is explained.
        n: how many masks.
        grid: cells on each side of the picture.
        p: how likely a cell is left in.
        seed: of the masks, which are the same for every picture.
        score: the target's probability (the paper), or its logit; functions of the logits as they are.
        mask_space: where masks multiply: what the model takes, so that the mean colour is what is masked out (the
            authors' code, TorchRay), or pixels in [0, 1], so that black is.
    """
    at_least_one(n=n, grid=grid)
    usable_seed(seed)
    normalised = is_normalised(mask_space)
    if not 0 < p < 1:
        raise ValueError(f"`p` is {p}, but must be between 0 and 1")
    size = (pixels.shape[2], pixels.shape[3])
    if grid > min(size):
        raise ValueError(f"`grid` is {grid}, but must be at most {min(size)}, the pixels of the picture's short side")
    anatomy.hasten(pixels)
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(n, grid, grid, generator=generator) < p
    shifts = [torch.randint(math.ceil(length / grid), (n,), generator=generator) for length in size]
    base = anatomy.normalise(pixels.detach()) if normalised else pixels
    maps = anatomy.split(pixels).logits.new_zeros(len(pixels), *size)
    with torch.no_grad():
        for i in range(len(pixels)):
            rate = _rate(target[i : i + 1], score)
            for some in anatomy.chunks(n):
                masks = _shifted(cells[some].to(pixels), shifts[0][some].tolist(), shifts[1][some].tolist(), size)
                scores = rate(anatomy.logits(masking.apply(base[i : i + 1], masks), normalised=normalised))
                maps[i] += torch.einsum("n,nhw->hw", scores.to(maps), masks.to(maps)) / (n * p)
    return maps


def _shifted(cells: Tensor, down: list[int], right: list[int], size: tuple[int, int]) -> Tensor:
    """Grids (n, s, s) as masks (n, H, W): bilinear to s + 1 cells each way, less `down` rows and `right` columns."""
    height, width = size
    grid = cells.shape[1]
    larger = ((grid + 1) * math.ceil(height / grid), (grid + 1) * math.ceil(width / grid))
    big = masking.up(cells, larger)
    return torch.stack([m[i : i + height, j : j + width] for m, i, j in zip(big, down, right, strict=True)])


def _rate(target: Target, score: Score) -> Callable[[Tensor], Tensor]:
    """What is measured on logits (n, classes): (n,)."""
    if score not in ("logit", "probability"):
        raise ValueError(f'`score` is "{score}", but must be "logit" or "probability"')
    return target.score if score == "logit" or target.function is not None else target.probability
