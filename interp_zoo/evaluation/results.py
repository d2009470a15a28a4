"""The files of an evaluation: results.parquet, results.csv, summary.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from interp_zoo.evaluation.measures import MEASURES
from interp_zoo.evaluation.records import Row
from interp_zoo.files import replacing, write_whole
from interp_zoo.metrics.functional.recognition import Protocol

PACKAGES = ("interp_zoo", "torch", "torchvision", "timm", "accelerate", "torchmetrics")
_FIRST = {
    "file": pa.string(),
    "model": pa.string(),
    "method": pa.string(),
    "target_kind": pa.string(),
    "target": pa.int64(),
}
_LAST = {
    "label": pa.string(),
    "truth": pa.int64(),
    "predicted": pa.int64(),
    "probability": pa.float64(),
    "masked_probability": pa.float64(),
    "blank": pa.bool_(),
    "seconds": pa.float64(),
    "forward": pa.float64(),
    "backward": pa.float64(),
    "tail": pa.float64(),
}


def write_results(folder: Path, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    """Writes results.parquet and results.csv, a row a picture, method, target and model, each file whole or not at all.

    Args:
        folder: where to.
        rows: in the order in which they are to stand.
        metrics: their names, a column each.
    """
    rows = [row | {name: _readable(row[name]) for name in ("file", "model", "method", "label")} for row in rows]
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in _FIRST.items()}
    columns |= {name: pa.array([row["metrics"].get(name) for row in rows], pa.float64()) for name in metrics}
    columns |= {name: pa.array([row[name] for row in rows], kind) for name, kind in _LAST.items()}
    table = pa.table(columns)
    for name, write in (("results.parquet", parquet.write_table), ("results.csv", csv.write_csv)):
        with replacing(folder / name) as new:
            write(table, str(new))


def _readable(text: str) -> str:
    """A file's name as text that can be written: bytes that are no UTF-8 as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def model_facts(rows: Iterable[Row], name: str, size: Sequence[int], weights: str) -> dict[str, Any]:
    """What a model makes of the pictures: how many it gets right, of those whose class is known."""
    seen = {row["index"]: (row["truth"], row["predicted"]) for row in rows if row["model"] == name}
    known = [(truth, predicted) for truth, predicted in seen.values() if truth is not None]
    return {
        "name": name,
        "pictures": len(seen),
        "labelled": len(known),
        "correct": sum(truth == predicted for truth, predicted in known),
        "input_size": list(size),
        "weights": weights,
    }


def metric_facts(metrics: Iterable[str], protocol: Protocol) -> list[dict[str, Any]]:
    """What the report says of each metric."""
    keys = ("name", "title", "about", "higher_is_better", "unit", "group")
    facts = [{key: getattr(MEASURES[name], key) for key in keys} for name in metrics]
    for fact in facts:
        if fact["name"] == "average_drop" and protocol == "pytorch-grad-cam":
            fact["about"] = "pytorch-grad-cam's drop: how much of the probability the mask loses, not which share of it"
    return facts


def versions() -> dict[str, str]:
    """Of the packages that figures depend on."""
    return {name: version(name) for name in PACKAGES}


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes summary.json, whole or not at all."""
    write_whole(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False))
