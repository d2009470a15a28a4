"""Metrics as pure functions: a figure a picture."""

from interp_zoo.metrics.functional.recognition import average_drop, average_gain, average_increase

__all__ = ["average_drop", "average_gain", "average_increase"]
