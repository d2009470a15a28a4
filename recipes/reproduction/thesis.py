"""The thesis' figures alone, of what was not run here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from interp_zoo.evaluation.measures import MEASURES
from reproduction.cells import METRICS, markdown, titles
from reproduction.measured import Json

BOXES = tuple(measure.name for measure in MEASURES.values() if measure.group == "localization")
TO_TWO_DECIMALS = ("saliency_metric", "seconds")


def of_the_thesis(thesis: Json) -> dict[str, Callable[[], str]]:
    """What makes each of its tables, by name."""
    return {
        "pooling, thesis": partial(pooling, thesis["pooling"]),
        "pooling, thesis, accuracy": partial(accuracies, thesis["pooling accuracy"]),
        "Opti-CAM, thesis": partial(methods, thesis["opticam"], (*METRICS, "seconds")),
        "Opti-CAM, thesis, boxes": partial(methods, thesis["opticam"], BOXES),
    }


def pooling(networks: Json) -> str:
    """CAMs with average pooling and with a stream."""
    rows = [["network", "CAM", *titles()]]
    for network, found in networks.items():
        for method, its in found.items():
            rows.append([f"`{network}`", f"`{method}`", *("{:.2f} → {:.2f}".format(*its[m]) for m in METRICS)])
    return markdown(rows)


def accuracies(networks: Json) -> str:
    """Top-1 with average pooling and with a stream."""
    rows = [[f"`{network}`", *(f"{value:.2f}" for value in its)] for network, its in networks.items()]
    return markdown([["top-1 ↑", "GAP", "CA"], *rows])


def methods(networks: Json, metrics: tuple[str, ...]) -> str:
    """Methods on networks, with as many decimals as the thesis has."""
    rows = [["network", "method", *("seconds ↓" if name == "seconds" else titles([name])[0] for name in metrics)]]
    for network, found in networks.items():
        for method, its in found.items():
            cells = (f"{its[name]:.{2 if name in TO_TWO_DECIMALS else 1}f}" for name in metrics)
            rows.append([f"`{network}`", f"`{method}`", *cells])
    return markdown(rows)
