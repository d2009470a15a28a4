"""Sanity checks, over the functions of `functional.sanity`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from interp_zoo.metrics.functional.sanity import Explain, class_sensitivity, randomization_curve
from interp_zoo.metrics.picture import CurveMetric, PictureMetric


class ClassSensitivity(PictureMetric):
    """How unlike the maps of two classes of one picture are, in percent; high is good.

    `update(saliency, other)` takes maps (N, H, W); see `functional.class_sensitivity`.
    """

    higher_is_better = True

    def update(self, saliency: Tensor, other: Tensor) -> None:
        """Adds pictures, by their maps (N, H, W) for one class and for another."""
        self.add(class_sensitivity(saliency, other))


class Randomization(CurveMetric):
    """What is left of the maps as the weights are lost from the output on, in percent; low is good.

    `update(model, explain)`; see `functional.randomization_curve`. The mean curve over stages is `curve()`.
    """

    higher_is_better = False

    def __init__(self, *, stages: int = 4, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(options=(stages, seed), **kwargs)
        self.stages, self.seed = stages, seed

    def update(self, model: nn.Module, explain: Explain) -> None:
        """Adds pictures: those of which `explain` gives the maps (N, H, W), for any network."""
        curves = randomization_curve(model, explain, stages=self.stages, seed=self.seed)
        self.add_curves(curves.mean(1), curves)
