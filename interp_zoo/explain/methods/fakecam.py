"""Fake-CAM: a map that says nothing and scores well, to test metrics with."""

from __future__ import annotations

from torch import Tensor

from interp_zoo.explain.anatomy import Anatomy
from interp_zoo.explain.methods.registry import register
from interp_zoo.explain.targets import Target


@register("fakecam", paper="Poppi et al., CVPR workshops 2021", cost="none of its own")
def fakecam(anatomy: Anatomy, pixels: Tensor, target: Target) -> Tensor:
    """One everywhere but in the top left pixel, at the picture's size: metrics should tell it from a map."""
    maps = pixels.new_ones(len(pixels), *pixels.shape[2:])
    maps[:, 0, 0] = 0
    return maps
