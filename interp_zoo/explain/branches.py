"""A layer's output, whatever its structure, as one map (B, C, h, w).

Most layers return a tensor. Some return a tuple (PiT: patches and class token; EfficientViM: map and hidden state),
some a list of branches at several resolutions (CrossViT, CoaT). `Branches` picks the tensors that are maps and joins
them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from interp_zoo.explain.grid import GridView

# Where a tensor stands in an output: () for the output itself, (1,) for output[1], ("x", 0) for output["x"][0].
Path = tuple[Any, ...]


def tensors(output: object, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in an output of tensors, tuples, lists and dicts, with its place."""
    if isinstance(output, Tensor):
        yield path, output
    elif isinstance(output, tuple | list):
        for i, part in enumerate(output):
            yield from tensors(part, (*path, i))
    elif isinstance(output, dict):
        for key, part in output.items():
            yield from tensors(part, (*path, key))


def map_tensors(output: Any, change: Callable[[Path, Tensor], Tensor], path: Path = ()) -> Any:
    """The same structure with every tensor replaced by `change(place, tensor)`."""
    if isinstance(output, Tensor):
        return change(path, output)
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(map_tensors(part, change, (*path, i)) for i, part in enumerate(output)))
    if isinstance(output, tuple | list):
        return type(output)(map_tensors(part, change, (*path, i)) for i, part in enumerate(output))
    if isinstance(output, dict):
        new = copy.copy(output)  # of its own class: Hugging Face's outputs are asked for attributes
        for key, part in output.items():
            new[key] = map_tensors(part, change, (*path, key))
        return new
    return output


@dataclass(frozen=True)
class Branches:
    """The tensors of an output that together are the explained map, and the grid that they share (the finest one)."""

    views: tuple[tuple[Path, GridView], ...]

    @property
    def grid(self) -> tuple[int, int]:
        """The height and width of the finest branch."""
        return max(((view.h, view.w) for _, view in self.views), key=lambda g: g[0] * g[1])

    def read(self, output: object) -> Tensor:
        """The maps (B, C, h, w): one branch as it is, several upsampled (nearest) and joined along their channels."""
        found = dict(tensors(output))
        if len(self.views) == 1:
            path, view = self.views[0]
            return view.maps(found[path])
        return torch.cat([self._up(view.maps(found[path])) for path, view in self.views], 1)

    def write(self, output: Any, maps: Tensor) -> Any:
        """The same output with `maps` in place of what `read` gave: `write(o, read(o))` equals `o` to the digit.

        All of it is new, so that what works on it in place changes neither. A coarser branch takes its change from the
        mean of the fine places that it covers.
        """
        found = dict(tensors(output))
        new: dict[Path, Tensor] = {}
        start = 0
        for path, view in self.views:
            old = view.maps(found[path])
            part = maps[:, start : start + old.shape[1]]
            start += old.shape[1]
            if (view.h, view.w) != self.grid:
                part = old + F.adaptive_avg_pool2d(part - self._up(old), (view.h, view.w))
            new[path] = view.write(found[path], part)
        return map_tensors(output, lambda path, tensor: new[path] if path in new else tensor.clone())

    def _up(self, maps: Tensor) -> Tensor:
        return maps if maps.shape[2:] == self.grid else F.interpolate(maps, size=self.grid, mode="nearest")
