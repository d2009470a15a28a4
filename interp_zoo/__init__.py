"""Interpretable image recognition with timm.

`explain` any timm model, with no layer to name; importing this package registers its own architectures with timm.
"""

from typing import TYPE_CHECKING

import timm  # noqa: F401, first: torch imports faster from here than from the depth of the package's own imports

from interp_zoo import hub, models
from interp_zoo.explain import Comparison, Cost, Explainer, Explanation, compare, contrast, list_methods
from interp_zoo.models import list_models

if TYPE_CHECKING:
    from interp_zoo.explain.api import explain
else:
    from interp_zoo import explain

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Cost",
    "Explainer",
    "Explanation",
    "compare",
    "contrast",
    "explain",
    "hub",
    "list_methods",
    "list_models",
    "models",
]
