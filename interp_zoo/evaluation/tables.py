"""From rows to tables: means with intervals, what can be told apart, how metrics agree, and what to be wary of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from rich import box
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from interp_zoo.evaluation.measures import MEASURES, Measure
from interp_zoo.evaluation.records import Row, finite
from interp_zoo.explain.labels import Labels
from interp_zoo.explain.methods import get_method
from interp_zoo.metrics.functional import best_threshold
from interp_zoo.metrics.statistics import interval, kendall_tau, paired_difference

FEW = 30  # pictures, below which intervals are no more than a hint
Rows = dict[str, dict[int, Row]]  # of one model and one kind of target: by method, then picture
LEFT_OF_IT = 50  # percent of a map that is left without the weights, from which it is told


def by_method(rows: Iterable[Row], methods: Sequence[str], model: str, kind: str) -> Rows:
    """The rows of one table, by method and picture; of methods that have any, in the order asked for."""
    found: Rows = {method: {} for method in methods}
    for row in rows:
        if row["model"] == model and row["target_kind"] == kind and row["method"] in found:
            found[row["method"]][row["index"]] = row
    return {method: dict(sorted(its.items())) for method, its in found.items() if its}


def settle_box_accuracy(rows: Mapping[int, Row]) -> None:
    """Fills in box accuracy, of one method: a picture's hit at the threshold that is best for all pictures together."""
    hits = {i: row["hits"] for i, row in rows.items() if row.get("hits")}
    if not hits:
        return
    table = torch.tensor([[int(bit) for bit in bits] for bits in hits.values()], dtype=torch.float64)
    best = best_threshold(table)
    for i, bits in hits.items():
        rows[i]["metrics"]["box_accuracy"] = 100.0 * int(bits[best])


def name_classes(rows: Mapping[int, Row], labels: Labels) -> None:
    """Adds the names of what the pictures show, and of what the model sees, as "names" by class."""
    for row in rows.values():
        row["names"] = {c: labels.name(c) for c in (row["truth"], row["predicted"]) if c is not None}


def make_table(found: Rows, metrics: Sequence[str], model: str, kind: str) -> dict[str, Any]:
    """One model's table for one kind of target; see `summary.json`.

    Args:
        found: from `by_method`.
        metrics: their names.
        model: its name.
        kind: "label", "predicted" or "least_likely".
    """
    methods = list(found)
    floors = [is_floor(method) for method in methods]
    pictures = sorted({index for rows in found.values() for index in rows})
    figures = {name: as_tensor(found, pictures, name) for name in metrics}
    lines = [_line(method, rows, floor) for (method, rows), floor in zip(found.items(), floors, strict=True)]
    for name, values in figures.items():
        for line, cell in zip(lines, _cells(values, floors, MEASURES[name]), strict=True):
            line["metrics"][name] = cell
    turned = {n: v.nanmean(0) * (1 if MEASURES[n].higher_is_better else -1) for n, v in figures.items()}
    own = ~torch.tensor(floors)
    names = [name for name in metrics if not bool(turned[name][own].isnan().all())]
    return {
        "model": model,
        "target_kind": kind,
        "pictures": len(pictures),
        "rows": lines,
        "agreement": {
            "metrics": names,
            "tau": [[finite(kendall_tau(turned[a][own], turned[b][own])) for b in names] for a in names],
        },
        "warnings": list(_warnings(lines, metrics, len(pictures))),
    }


def as_text(table: Mapping[str, Any], metrics: Sequence[str]) -> Iterator[str | Table]:
    """A table for the terminal, in parts by groups of metrics, and what to be wary of."""
    yield (
        f"\n{escape(table['model'])}, target {table['target_kind']}, {table['pictures']} pictures: "
        "the best mean in bold, ~ not told apart from it (paired, 95 %)"
    )
    for group in dict.fromkeys(MEASURES[name].group for name in metrics):
        names = [name for name in metrics if MEASURES[name].group == group]
        arrows = [MEASURES[name].title + (" ↑" if MEASURES[name].higher_is_better else " ↓") for name in names]
        text = Table(box=box.SIMPLE)
        text.add_column("method", no_wrap=True)
        for arrow in arrows:
            text.add_column(arrow, justify="right")
        for line in sorted(table["rows"], key=lambda line: line["floor"]):
            cells = []
            for cell in (line["metrics"][name] for name in names):
                mean = "" if cell["mean"] is None else f"{cell['mean']:.1f}"
                cells.append({"best": f"[bold]{mean}[/bold]", "noise": f"~{mean}"}.get(cell["standing"], mean))
            text.add_row(escape(line["method"]), *cells, style="dim" if line["floor"] else None)
        yield text
    yield from (escape(f"mind: {warning}") for warning in table["warnings"])


def is_floor(method: str) -> bool:
    """Whether a method, as its text has it, says nothing of what the model sees."""
    return get_method(method.partition(":")[0]).floor


def as_tensor(found: Rows, pictures: Sequence[int], name: str) -> Tensor:
    """A metric's figures, (pictures, methods), float64, NaN where there is none."""
    table = torch.full((len(pictures), len(found)), torch.nan, dtype=torch.float64)
    for column, rows in enumerate(found.values()):
        for line, index in enumerate(pictures):
            value = rows[index]["metrics"].get(name) if index in rows else None
            table[line, column] = torch.nan if value is None else value
    return table


def _line(method: str, rows: Mapping[int, Row], floor: bool) -> dict[str, Any]:
    names = dict.fromkeys(name for row in rows.values() for name in row["curves"])
    curves = {
        name: torch.tensor([[torch.nan if v is None else v for v in row["curves"][name]] for row in rows.values()])
        for name in names
    }
    costs = {
        key: sum(row[key] for row in rows.values()) / len(rows) for key in ("seconds", "forward", "backward", "tail")
    }
    return {
        "method": method,
        "floor": floor,
        "pictures": len(rows),
        "blank": sum(row["blank"] for row in rows.values()),
        **costs,
        "metrics": {},
        "curves": {name: [finite(v) for v in curve.nanmean(0).tolist()] for name, curve in curves.items()},
    }


def _cells(values: Tensor, floors: Sequence[bool], measure: Measure) -> list[dict[str, Any]]:
    """A metric's cell for each method, from figures (pictures, methods)."""
    means, (low, high) = values.nanmean(0), interval(values)
    turned = means if measure.higher_is_better else -means
    turned = turned.masked_fill(torch.tensor(floors) | turned.isnan(), -torch.inf)
    best = int(turned.argmax()) if bool((turned > -torch.inf).any()) else None
    behind = None
    if best is not None:
        pair = (values[:, best : best + 1].expand_as(values), values)  # positive is worse than the best
        behind = paired_difference(*(pair if measure.higher_is_better else pair[::-1]))
    cells = []
    for i, floor in enumerate(floors):
        cell: dict[str, Any] = {
            "mean": finite(means[i]),
            "low": finite(low[i]),
            "high": finite(high[i]),
            "count": int((~values[:, i].isnan()).sum()),
            "standing": "",
            "behind": None,
        }
        tied = best is not None and bool(means[i] == means[best])
        if behind is not None and i != best:
            difference = dict(zip(("mean", "low", "high"), map(finite, behind[:, i]), strict=True))
            cell["behind"] = difference if None not in difference.values() else None
        if not floor and tied:
            cell["standing"] = "best"
        elif not floor and cell["behind"] and cell["behind"]["low"] <= 0 <= cell["behind"]["high"]:
            cell["standing"] = "noise"
        cells.append(cell)
    return cells


def _warnings(lines: Sequence[Mapping[str, Any]], metrics: Sequence[str], pictures: int) -> Iterable[str]:
    own = [line for line in lines if not line["floor"]]
    for line in (line for line in lines if line["floor"]):
        wins, half = [], []
        for measure in map(MEASURES.__getitem__, metrics):
            floor = line["metrics"][measure.name]["mean"]
            others = [o["metrics"][measure.name]["mean"] for o in own if o["metrics"][measure.name]["mean"] is not None]
            if floor is None or not others:
                continue
            reached = sum((floor >= o) if measure.higher_is_better else (floor <= o) for o in others)
            if reached == len(others):
                wins.append(f"{measure.title} ({floor:.1f})")
            elif 2 * reached >= len(others):
                half.append(f"{measure.title} ({floor:.1f}, {reached} of {len(others)} methods)")
        name = f'"{line["method"]}", which says nothing of what the model sees,'
        if wins:
            yield f"{name} wins by {', '.join(wins)}: alone, these metrics tell nothing here"
        if half:
            yield f"{name} is at least as good as half of the methods by {', '.join(half)}: read these with others"
    for line in own:
        if line["blank"]:
            yield f'"{line["method"]}": {line["blank"]} of {line["pictures"]} maps are blank (zero everywhere)'
        left = line["metrics"].get("randomization", {}).get("mean")
        if left is not None and left >= LEFT_OF_IT:
            yield f'"{line["method"]}": {left:.0f} % of the map is left when the weights are lost: it shows the picture'
    if pictures < FEW:
        yield f"only {pictures} picture{'s' * (pictures != 1)}: the intervals are no more than a hint"
