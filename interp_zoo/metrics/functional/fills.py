"""What stands in the place of pixels that are taken away: for insertion, deletion and whatever else removes pixels."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Fill = Literal["blur", "mean", "black", "noise", "linear"]
FILLS: tuple[Fill, ...] = get_args(Fill)

# ROAD's weights of a pixel's neighbours, by their offset.
_NEIGHBOURS = {(y, x): 1 / 6 if 0 in (y, x) else 1 / 12 for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)}
LINEAR_NOISE = 0.01  # its standard deviation, ROAD's: without it, smoothness itself would show where pixels are gone


def painter(
    pixels: Tensor, *, mean: Tensor, fill: Fill, kernel: int = 11, sigma: float = 5.0, seed: int = 0
) -> Callable[[Tensor, Tensor], Tensor]:
    """A function that takes pixels away from pictures.

    Args:
        pixels: the pictures, (N, channels, H, W) in [0, 1].
        mean: the mean colour that the model subtracts, (channels,).
        fill: what comes in their place: the picture blurred, the mean colour, black, noise (uniform in [0, 1], the
            same for every picture), or "linear": what the pixels around suggest (Rong et al., "ROAD", ICML 2022), each
            pixel the weighted mean of its eight neighbours, plus a little noise.
        kernel: the width of the blur in pixels, odd.
        sigma: its standard deviation in pixels.
        seed: of the noise.

    Returns:
        (which pictures (B,), the pixels that are gone (B, H, W), bool) to pictures (B, channels, H, W).

    Raises:
        ValueError: if the fill or the kernel is none that there is.
    """
    if fill == "linear":

        def interpolate(which: Tensor, gone: Tensor) -> Tensor:
            guess = linear(pixels[which], gone, mean)
            return guess + LINEAR_NOISE * gone[:, None] * _noise(pixels, seed, torch.randn)

        return interpolate
    instead = filled(pixels, mean=mean, fill=fill, kernel=kernel, sigma=sigma, seed=seed)
    return lambda which, gone: torch.where(gone[:, None], instead[which], pixels[which])


def filled(pixels: Tensor, *, mean: Tensor, fill: Fill, kernel: int, sigma: float, seed: int) -> Tensor:
    """What stands in the place of pictures (N, channels, H, W) whose pixels are all gone; see `painter`."""
    colour = mean.to(pixels)[:, None, None]
    if fill == "blur":
        return blurred(pixels - colour, kernel, sigma) + colour  # beyond the edges is the mean colour, as for RISE
    if fill == "mean":
        return colour.expand_as(pixels)
    if fill == "black":
        return torch.zeros_like(pixels)
    if fill == "noise":
        return _noise(pixels, seed, torch.rand).expand_as(pixels)
    raise ValueError(f'`fill` is "{fill}", but must be one of {", ".join(FILLS)}')


def blurred(x: Tensor, kernel: int, sigma: float) -> Tensor:
    """Maps (N, channels, H, W) under a Gaussian of `kernel` x `kernel` pixels, with zeros beyond the edges."""
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"`blur_kernel` is {kernel}, but must be odd and at least 1")
    line = gaussian(kernel, sigma).to(x)
    channels = x.shape[1]
    rows = F.conv2d(x, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), padding=(kernel // 2, 0), groups=channels)
    return F.conv2d(rows, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), padding=(0, kernel // 2), groups=channels)


def gaussian(kernel: int, sigma: float) -> Tensor:
    """RISE's kernel, (kernel,), with sum 1: a Gaussian cut off at 4 sigma, what is too wide for it folded back in."""
    reach = int(4 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    places = (kernel // 2 + offsets.long()) % (2 * kernel)  # reflected at the edges, again and again
    places = torch.where(places < kernel, places, 2 * kernel - 1 - places)
    return torch.zeros(kernel, dtype=torch.float64).index_add_(0, places, weights / weights.sum())


def linear(pixels: Tensor, gone: Tensor, mean: Tensor) -> Tensor:
    """Pictures (B, channels, H, W) with the pixels `gone` (B, H, W) interpolated, without noise; see `painter`.

    Solved exactly, on the CPU, several pictures at a time on as many threads as torch has. A picture with no pixel left
    gets the mean colour.
    """
    out, lacking = pixels.clone(), []
    for i, missing in enumerate(gone):
        if bool(missing.all()):
            out[i] = mean.to(pixels)[:, None, None]
        elif bool(missing.any()):
            lacking.append(i)
    known = [pixels[i].permute(1, 2, 0).double().cpu().numpy() for i in lacking]
    places = [gone[i].cpu().numpy() for i in lacking]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # the solver lets go of Python's lock
        for i, values in zip(lacking, pool.map(_interpolated, known, places), strict=True):
            out[i][:, gone[i]] = torch.from_numpy(values).T.to(out)
    return out


def _interpolated(picture: np.ndarray[Any, Any], gone: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The values (n, channels) of the n missing pixels of a picture (H, W, channels): the solution of a sparse system.

    Each missing pixel is the weighted mean of its neighbours within the picture, known or missing.
    """
    # Late: it takes a while to import, and only this needs it.
    from scipy.sparse import csc_matrix
    from scipy.sparse.linalg import splu

    height, width = gone.shape
    n = int(gone.sum())
    number = np.full((height, width), -1)
    number[gone] = np.arange(n)
    y, x = np.nonzero(gone)
    weights, right = np.zeros(n), np.zeros((n, picture.shape[2]))
    entries = []
    for (down, across), weight in _NEIGHBOURS.items():
        inside = (y + down >= 0) & (y + down < height) & (x + across >= 0) & (x + across < width)
        here = np.flatnonzero(inside)
        there = (y[here] + down, x[here] + across)
        weights[here] += weight
        missing = number[there] >= 0
        right[here[~missing]] += weight * picture[there][~missing]
        entries.append((here[missing], number[there][missing], np.full(missing.sum(), -weight)))
    entries.append((np.arange(n), np.arange(n), weights))
    rows, columns, values = (np.concatenate(part) for part in zip(*entries, strict=True))
    matrix = csc_matrix((values, (rows, columns)), shape=(n, n))  # symmetric and positive definite
    solver = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True})
    solution: np.ndarray[Any, Any] = solver.solve(right)
    return solution


def _noise(pixels: Tensor, seed: int, draw: Callable[..., Tensor]) -> Tensor:
    """Noise (channels, H, W), the same for every picture, on every device."""
    return draw(pixels.shape[1:], generator=torch.Generator().manual_seed(seed)).to(pixels)
