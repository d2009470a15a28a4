"""Localisation, over the functions of `functional.localization`, which say what each figure is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from interp_zoo.metrics.functional.causal import Classifier
from interp_zoo.metrics.functional.localization import (
    Regions,
    best_threshold,
    box_accuracy,
    energy_pointing_game,
    localization_error,
    official_metric,
    pixel_f1,
    pointing_game,
    saliency_metric,
)
from interp_zoo.metrics.picture import CurveMetric, PictureMetric


class LocalizationError(PictureMetric):
    """How many maps' boxes overlap no box of the object by more than half, in percent; low is good."""

    higher_is_better = False

    def update(self, saliency: Tensor, regions: Regions) -> None:
        """Adds pictures, by their maps (N, H, W) and boxes (M, 4) or masks (M, H, W) each."""
        self.add(localization_error(saliency, regions))


class OfficialMetric(PictureMetric):
    """The same, where a picture that the model gets wrong counts as an error, too; low is good."""

    higher_is_better = False

    def update(self, saliency: Tensor, regions: Regions, correct: Tensor) -> None:
        """Adds pictures, by their maps, regions, and whether the model gets them right, (N,) bool."""
        self.add(official_metric(saliency, regions, correct))


class PixelF1(PictureMetric):
    """How much of the map lies in the object, and of the object in the map, in percent; high is good."""

    higher_is_better = True

    def update(self, saliency: Tensor, regions: Regions) -> None:
        """Adds pictures, by their maps (N, H, W) and boxes (M, 4) or masks (M, H, W) each."""
        self.add(pixel_f1(saliency, regions))


class BoxAccuracy(CurveMetric):
    """MaxBoxAcc: how many maps' boxes overlap the object's by half, at the best threshold for all pictures, in percent.

    High is good. `per_picture` gives hits at that threshold; `curve()` the accuracy at each threshold.
    """

    higher_is_better = True

    def __init__(self, thresholds: int = 100, **kwargs: Any) -> None:
        if thresholds < 1:
            raise ValueError(f"`thresholds` is {thresholds}, but must be at least 1")
        super().__init__(options=thresholds, **kwargs)
        self.thresholds = thresholds

    def update(self, saliency: Tensor, regions: Regions) -> None:
        """Adds pictures, by their maps (N, H, W) and boxes (M, 4) or masks (M, H, W) each."""
        hits = box_accuracy(saliency, regions, thresholds=self.thresholds)
        self.add_curves(hits.mean(1), hits)  # which threshold is best only all pictures together tell

    def _figures(self) -> Tensor:
        hits = self._all_curves()
        return hits[:, best_threshold(hits)] if hits.numel() else hits.new_zeros(0)


class PointingGame(PictureMetric):
    """How many maps have their maximum in the object, in percent; high is good."""

    higher_is_better = True

    def __init__(self, *, legacy: bool = False, **kwargs: Any) -> None:
        super().__init__(options=legacy, **kwargs)
        self.legacy = legacy

    def update(self, saliency: Tensor, regions: Regions) -> None:
        """Adds pictures, by their maps (N, H, W) and boxes (M, 4) or masks (M, H, W) each."""
        self.add(pointing_game(saliency, regions, legacy=self.legacy))


class EnergyPointingGame(PictureMetric):
    """The share of the map that lies in the object, in percent; high is good."""

    higher_is_better = True

    def __init__(self, *, legacy: bool = False, **kwargs: Any) -> None:
        super().__init__(options=legacy, **kwargs)
        self.legacy = legacy

    def update(self, saliency: Tensor, regions: Regions) -> None:
        """Adds pictures, by their maps (N, H, W) and boxes (M, 4) or masks (M, H, W) each."""
        self.add(energy_pointing_game(saliency, regions, legacy=self.legacy))


class SaliencyMetric(PictureMetric):
    """log(area) - log(probability) of the crop to the map's box, in nats; low is good. It needs no boxes."""

    higher_is_better = False

    def __init__(self, *, batch_size: int = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.batch_size = batch_size

    def update(self, classify: Classifier, pixels: Tensor, saliency: Tensor, target: Tensor) -> None:
        """Adds pictures (N, channels, H, W) in [0, 1] with their maps (N, H, W) and classes (N,)."""
        self.add(saliency_metric(classify, pixels, saliency, target, batch_size=self.batch_size))
