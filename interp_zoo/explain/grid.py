"""Views of a layer's output as maps on the picture's grid.

timm's networks hand their features on as (B, C, h, w), as (B, h, w, C), or as (B, p + h * w, C) with p prefix tokens
(class, distillation, registers) in front. A `GridView` knows one such layout and goes both ways.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["NCHW", "NHWC", "NLC"]

MAX_PREFIX_TOKENS = 5  # of networks that do not say how many they have
# How far the grid's aspect ratio may be from the picture's: padding and valid convolutions move it by a row or two.
ASPECT_TOLERANCE = 0.3


@dataclass(frozen=True)
class GridView:
    """One layout of a feature map: `h` x `w` places, after `prefix` tokens that belong to no place."""

    layout: Layout
    h: int
    w: int
    prefix: int = 0

    def maps(self, tensor: Tensor) -> Tensor:
        """The places of `tensor` as (B, C, h, w), without its prefix tokens."""
        if self.layout == "NCHW":
            return tensor
        if self.layout == "NHWC":
            return tensor.permute(0, 3, 1, 2)
        tokens = tensor[:, self.prefix :].transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], self.h, self.w)

    def write(self, tensor: Tensor, maps: Tensor) -> Tensor:
        """A new tensor laid out like `tensor`, its places taken from `maps` (B, C, h, w), its prefix tokens kept.

        The result is never `maps` itself, so that what works on it in place leaves `maps` as it was.
        """
        maps = maps.to(tensor.dtype)
        if self.layout == "NCHW":
            return maps.clone()
        if self.layout == "NHWC":
            return maps.permute(0, 2, 3, 1).clone()
        return torch.cat([tensor[:, : self.prefix], maps.flatten(2).transpose(1, 2)], 1)


def find_view(
    shape: tuple[int, ...],
    size: tuple[int, int],
    *,
    strides: Iterable[int] = (),
    prefix: int | None = None,
    channels_last: bool = False,
    grids: Iterable[tuple[int, int]] = (),
) -> GridView | None:
    """How a tensor of `shape` (batch first) can be seen as a grid over a picture of `size` (H, W); None if it can't.

    Args:
        shape: the tensor's shape, batch first.
        size: height and width of the picture in pixels.
        strides: the network's known reductions; they decide where more than one grid fits.
        prefix: the network's own number of prefix tokens, tried first.
        channels_last: whether an ambiguous 4-D shape is (B, h, w, C).
        grids: (h, w) of maps elsewhere in the network, such as those that tokens were made of.
    """
    known = {(math.ceil(size[0] / s), math.ceil(size[1] / s)) for s in strides if s}
    known |= {(size[0] // s, size[1] // s) for s in strides if s}
    if len(shape) == 4:
        return _find_4d(shape, size, known, channels_last)
    if len(shape) == 3:
        return _find_3d(shape, size, known | set(grids), prefix)
    return None


def _aspect_error(h: int, w: int, size: tuple[int, int]) -> float:
    return abs(math.log((h * size[1]) / (w * size[0])))


def _is_grid(h: int, w: int, size: tuple[int, int]) -> bool:
    """At least two places on the longer side, no finer than the picture, and its aspect ratio up to rounding."""
    if max(h, w) < 2 or h > size[0] or w > size[1]:
        return False
    rounding = 1 / min(h, w)  # a row more or less
    return _aspect_error(h, w, size) <= max(ASPECT_TOLERANCE, rounding)


def _find_4d(
    shape: tuple[int, ...], size: tuple[int, int], known: set[tuple[int, int]], channels_last: bool
) -> GridView | None:
    options: list[tuple[tuple[bool, float, bool], GridView]] = []
    for layout, h, w in (("NCHW", shape[2], shape[3]), ("NHWC", shape[1], shape[2])):
        if ((h, w) in known and max(h, w) >= 2) or _is_grid(h, w, size):
            rank = ((h, w) not in known, round(_aspect_error(h, w, size), 6), channels_last != (layout == "NHWC"))
            options.append((rank, GridView("NHWC" if layout == "NHWC" else "NCHW", h, w)))
    return min(options, key=lambda o: o[0])[1] if options else None


def _find_3d(
    shape: tuple[int, ...], size: tuple[int, int], known: set[tuple[int, int]], prefix: int | None
) -> GridView | None:
    options: list[tuple[tuple[bool, bool, int], GridView]] = []
    for p in sorted({*range(MAX_PREFIX_TOKENS + 1), prefix or 0}):
        grid = _factor(shape[1] - p, size, known)
        if grid is not None:
            rank = (grid not in known, p != prefix and prefix is not None, p)
            options.append((rank, GridView("NLC", *grid, p)))
    return min(options, key=lambda o: o[0])[1] if options else None


def _factor(length: int, size: tuple[int, int], known: set[tuple[int, int]]) -> tuple[int, int] | None:
    """The grid of `length` places that fits the picture's aspect ratio, a known one first."""
    for h, w in sorted(known):
        if h * w == length and max(h, w) >= 2:
            return h, w
    if length < 4:
        return None
    h = round(math.sqrt(length * size[0] / size[1]))
    for near in (h, h + 1, h - 1):
        if near > 0 and length % near == 0 and _is_grid(near, length // near, size):
            return near, length // near
    return None
