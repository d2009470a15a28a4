"""A made-up run for the tests of its report, and a reader of the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from conftest import texture
from PIL import Image

from interp_zoo.evaluation.report import write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}
# Tags, attributes, length, the other direction, mathematics of matplotlib's, no glyph in its fonts, no UTF-8.
HOSTILE = [
    '<script>alert("x")</script>',
    "\"'><img src=x onerror=alert(1)>",
    "y" * 300,
    "\u202eمرحبا $x_{$ 漢字",
    "a\udcffb",
]
# name, title, high is good, unit, group
METRICS = [
    ("average_drop", "AD", False, "%", "recognition"),
    ("average_gain", "AG", True, "%", "recognition"),
    ("insertion", "I", True, "%", "causal"),
    ("deletion", "D", False, "%", "causal"),
    ("insertion_black", "I black", True, "%", "fills"),
    ("insertion_noise", "I noise", True, "%", "fills"),
    ("saliency_metric", "SM", False, "", "localization"),
]
# Means by method, in the order of METRICS; the last is a floor that no method beats in AD.
MEANS = {
    "gradcam": (13.04, 14.8, 61.25, 9.5, 50.0, 30.0, 0.125),
    "opticam": (2.5, 74.13, 55.0, 11.0, 40.0, 45.0, -0.5),
    "scorecam": (2.75, 20.0, 58.0, 10.0, 45.0, 40.0, 1.0),
    "fakecam": (0.0, 1.0, 45.0, 20.0, 30.0, 20.0, 0.98),
}


def jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def png(values: np.ndarray[Any, Any]) -> str:
    buffer = io.BytesIO()
    Image.fromarray((255 * values).round().astype(np.uint8)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def blob(seed: int) -> np.ndarray[Any, Any]:
    y, x = np.mgrid[0:56, 0:56] / 56 - np.random.default_rng(seed).uniform(0.3, 0.7, 2)[:, None, None]
    return np.asarray(np.exp(-10 * (x**2 + y**2)))


def a_summary(means: Mapping[str, tuple[float, ...]] = MEANS, *, charts: bool = False) -> dict[str, Any]:
    """A summary by hand; without what charts are drawn from, which takes its time, unless asked for."""
    metrics = [
        {"name": n, "title": t, "about": f"About {n}.", "higher_is_better": h, "unit": u, "group": g}
        for n, t, h, u, g in METRICS
    ]
    rows = []
    for i, (method, values) in enumerate(means.items()):
        entries = {
            name: {"mean": v, "low": v - 1, "high": v + 2, "count": 20, "standing": "", "behind": None}
            for (name, *_), v in zip(METRICS, values, strict=True)
        }
        curve = [k / 28 * (0.5 + 0.1 * i) for k in range(29)]
        rows.append(
            {
                "method": method,
                "floor": method == "fakecam",
                "pictures": 20,
                "blank": 3 if method == "scorecam" else 0,
                "seconds": 0.03 * 10 ** min(i, 3) if charts else None,
                "forward": 1.0,
                "backward": 0.0,
                "tail": 1.5,
                "metrics": entries,
                "curves": {"insertion": curve, "deletion": curve[::-1]} if charts else {},
            }
        )
    if "opticam" in means:
        by_name: dict[str, Any] = {str(row["method"]): row["metrics"] for row in rows}
        by_name["opticam"]["average_drop"]["standing"] = "best"
        by_name["scorecam"]["average_drop"] |= {"standing": "noise", "behind": {"mean": 0.25, "low": -0.5, "high": 1.0}}
        by_name["gradcam"]["average_drop"]["behind"] = {"mean": 10.54, "low": 8.0, "high": 12.0}
    names = [m[0] for m in METRICS]
    tau = [[1.0 if a == b else -0.33 for b in names] for a in names]
    return {
        "command": 'accelerate launch recipes/evaluate.py --methods "all"',
        "protocol": {"data": "a folder", "mask": "pixels in [0, 1] x map", "insertion": "from the blurred picture"},
        "versions": {"interp_zoo": "0.1.0", "torch": "2.14.1"},
        "metrics": metrics,
        "models": [
            {
                "name": "resnet50",
                "pictures": 20,
                "labelled": 20,
                "correct": 17,
                "input_size": [224, 224],
                "weights": "f0",
            }
        ],
        "tables": [
            {
                "model": "resnet50",
                "target_kind": "predicted",
                "rows": rows,
                "agreement": {"metrics": names, "tau": tau},
                "warnings": ["AD: fakecam is better than 3 of 3 methods"],
            }
        ],
        "left_out": [{"model": "resnet50", "method": "attention", "why": "it has no attention"}],
    }


def some_rows(
    pictures: int = 3, methods: tuple[str, ...] = tuple(MEANS), model: str = "resnet50"
) -> list[dict[str, Any]]:
    return [
        {
            "index": 10 * i,
            "file": f"n{i}.jpg",
            "model": model,
            "method": method,
            "target_kind": "predicted",
            "target": i,
            "label": f"label {i}",
            "truth": 0,
            "predicted": i,
            "probability": 0.9,
            "masked_probability": 0.8,
            "metrics": {"average_drop": 6.6 + i, "insertion": 60.0 + i, "deletion": None},
            "curves": {},
            "seconds": 0.03,
            "forward": 1.0,
            "backward": 0.0,
            "tail": 1.0,
            "blank": False,
            "map": png(blob(i)),
        }
        for i in range(pictures)
        for method in methods
    ]


def some_thumbnails(pictures: int = 3, model: str = "resnet50") -> dict[tuple[str, int], str]:
    return {(model, 10 * i): jpeg(texture((112, 112), i)) for i in range(pictures)}


class Page(HTMLParser):
    """What a reader of tags sees: the tree's balance, attributes, and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.text = text
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag in ("h2", "h3", "h4"):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data
        if self.open and self.open[-1] in ("h2", "h3", "h4"):
            self.headings[-1] += data

    def line(self, method: str, table: int = 0) -> list[str]:
        """A method's cells in a table, without white space at their ends."""
        (found,) = [row for row in self.tables[table] if row and row[0].strip().startswith(method)]
        return [" ".join(cell.split()) for cell in found]


def write(folder: Path, summary: dict[str, Any], rows: Any = (), thumbnails: Any = None) -> Page:
    path = folder / "report.html"
    write_report(path, summary, list(rows), thumbnails or {})
    return Page(path.read_text(encoding="utf-8"))
