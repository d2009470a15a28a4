"""Metrics as pure functions: a figure a picture."""

from interp_zoo.metrics.functional.causal import area, deletion, deletion_curve, insertion, insertion_curve
from interp_zoo.metrics.functional.recognition import average_drop, average_gain, average_increase

__all__ = [
    "area",
    "average_drop",
    "average_gain",
    "average_increase",
    "deletion",
    "deletion_curve",
    "insertion",
    "insertion_curve",
]
