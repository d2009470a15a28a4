"""Metrics as pure functions: a figure a picture."""

from interp_zoo.metrics.functional.causal import area, deletion, deletion_curve, insertion, insertion_curve
from interp_zoo.metrics.functional.localization import (
    best_threshold,
    box_accuracy,
    energy_pointing_game,
    localization_error,
    official_metric,
    pixel_f1,
    pointing_game,
    saliency_metric,
)
from interp_zoo.metrics.functional.recognition import average_drop, average_gain, average_increase
from interp_zoo.metrics.functional.sanity import (
    cascade,
    class_sensitivity,
    randomization,
    randomization_curve,
    rank_correlation,
)

__all__ = [
    "area",
    "average_drop",
    "average_gain",
    "average_increase",
    "best_threshold",
    "box_accuracy",
    "cascade",
    "class_sensitivity",
    "deletion",
    "deletion_curve",
    "energy_pointing_game",
    "insertion",
    "insertion_curve",
    "localization_error",
    "official_metric",
    "pixel_f1",
    "pointing_game",
    "randomization",
    "randomization_curve",
    "rank_correlation",
    "saliency_metric",
]
