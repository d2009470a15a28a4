"""Explain what an image classifier sees. The package is the function, too: `interp_zoo.explain(model, img)`."""

import sys
from types import ModuleType

from interp_zoo.explain import methods
from interp_zoo.explain.api import Explainer, explain
from interp_zoo.explain.compare import Comparison, compare
from interp_zoo.explain.explanation import Cost, Explanation
from interp_zoo.explain.methods import list_methods, register
from interp_zoo.explain.targets import contrast

__all__ = [
    "Comparison",
    "Cost",
    "Explainer",
    "Explanation",
    "compare",
    "contrast",
    "explain",
    "list_methods",
    "methods",
    "register",
]


class _Callable(ModuleType):
    """Makes `interp_zoo.explain(...)` work although `interp_zoo.explain` is this package."""

    __call__ = staticmethod(explain)


sys.modules[__name__].__class__ = _Callable
