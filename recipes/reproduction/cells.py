"""How figures are written in a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from interp_zoo.evaluation.measures import MEASURES
from reproduction.measured import Json

METRICS = ("average_drop", "average_gain", "average_increase", "insertion", "deletion")
MARKS = {"second": "▲", "first": "▼", "": "≈"}


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """A table; its first row is its head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body))


def titles(names: Iterable[str] = METRICS) -> list[str]:
    """Of metrics, with the better side."""
    return [MEASURES[name].title + (" ↑" if MEASURES[name].higher_is_better else " ↓") for name in names]


def measured_metrics(line: Json) -> list[str]:
    """Which metrics a method's line has; a run need not have measured all of them."""
    return [name for name in METRICS if name in line["metrics"]]


def change(cell: Json) -> str:
    """What a metric is on the first and on the second model, and whether the run tells them apart."""
    return f"{cell['first']:.2f} → {cell['second']:.2f} {MARKS[cell['better']]}"


def by_how_much(cell: Json) -> str:
    """The difference with its interval."""
    return f"{cell['difference']:+.2f} ({cell['low']:+.2f} to {cell['high']:+.2f})"
