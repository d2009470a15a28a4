"""Metrics of explanations: torchmetrics classes over the functions of `interp_zoo.metrics.functional`.

The classes are imported when they are first asked for: torchmetrics takes its time, and `import interp_zoo` needs none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp_zoo.metrics.causal import Deletion, Insertion
    from interp_zoo.metrics.localization import (
        BoxAccuracy,
        EnergyPointingGame,
        LocalizationError,
        OfficialMetric,
        PixelF1,
        PointingGame,
        SaliencyMetric,
    )
    from interp_zoo.metrics.recognition import AverageDrop, AverageGain, AverageIncrease
    from interp_zoo.metrics.sanity import ClassSensitivity, Randomization

_WHERE = {
    "AverageDrop": "recognition",
    "AverageGain": "recognition",
    "AverageIncrease": "recognition",
    "BoxAccuracy": "localization",
    "ClassSensitivity": "sanity",
    "Deletion": "causal",
    "EnergyPointingGame": "localization",
    "Insertion": "causal",
    "LocalizationError": "localization",
    "OfficialMetric": "localization",
    "PixelF1": "localization",
    "PointingGame": "localization",
    "Randomization": "sanity",
    "SaliencyMetric": "localization",
}

__all__ = [
    "AverageDrop",
    "AverageGain",
    "AverageIncrease",
    "BoxAccuracy",
    "ClassSensitivity",
    "Deletion",
    "EnergyPointingGame",
    "Insertion",
    "LocalizationError",
    "OfficialMetric",
    "PixelF1",
    "PointingGame",
    "Randomization",
    "SaliencyMetric",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
