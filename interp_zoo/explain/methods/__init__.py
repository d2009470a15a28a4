"""The methods, a file a family. Importing this package registers them all."""

from interp_zoo.explain.methods import (
    ablationcam,
    attending,
    attention,
    cam,
    extremal,
    floors,
    gradcam,
    gradient,
    opticam,
    perturbation,
    reciprocam,
    scorecam,
    transformer,
)
from interp_zoo.explain.methods.registry import Method, UnsuitableModel, get_method, list_methods, register, unregister

__all__ = [
    "Method",
    "UnsuitableModel",
    "ablationcam",
    "attending",
    "attention",
    "cam",
    "extremal",
    "floors",
    "get_method",
    "gradcam",
    "gradient",
    "list_methods",
    "opticam",
    "perturbation",
    "reciprocam",
    "register",
    "scorecam",
    "transformer",
    "unregister",
]
