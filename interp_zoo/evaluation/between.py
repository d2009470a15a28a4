"""Models side by side: what a method's figures are on one model and on another, and how sure the difference is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from interp_zoo.evaluation.measures import MEASURES, Measure
from interp_zoo.evaluation.records import finite
from interp_zoo.evaluation.tables import Rows, as_tensor, is_floor
from interp_zoo.metrics.statistics import paired_difference


def compare(models: Mapping[str, Rows], metrics: Sequence[str], kind: str) -> list[dict[str, Any]]:
    """Each model but the first against the first; see `summary.json`.

    Args:
        models: their rows, from `tables.by_method`, by the model's name.
        metrics: their names.
        kind: "label", "predicted" or "least_likely".

    Returns:
        For each pair a row for each method that both have, and in it for each metric: the means of `first` and `second`
        over the pictures that both have (their number is `count`), the mean `difference` with the `low` and `high` of
        its 95 % interval, paired by picture, and which model is `better`: "first", "second", or "" where they are not
        told apart. A method that is no floor has `beyond` as well, by floor: by how much its difference is another than
        the floor's, in the same terms. A floor's maps know nothing of either model: what it gains is no map's merit.
    """
    (first, *others) = models.items() or [("", {})]
    return [_pair(first, other, metrics, kind) for other in others]


def _pair(first: tuple[str, Rows], second: tuple[str, Rows], metrics: Sequence[str], kind: str) -> dict[str, Any]:
    (one, its), (other, others) = first, second
    methods = [method for method in its if method in others]
    pictures = sorted({i for m in methods for i in its[m]} & {i for m in methods for i in others[m]})
    lines: list[dict[str, Any]] = [{"method": m, "floor": is_floor(m), "metrics": {}} for m in methods]
    own, floors = ([i for i, line in enumerate(lines) if line["floor"] is floor] for floor in (False, True))
    for name in metrics:
        a, b = (as_tensor({m: rows[m] for m in methods}, pictures, name) for rows in (its, others))
        alone = a.isnan() | b.isnan()  # what one model lacks counts for neither
        a, b = a.masked_fill(alone, float("nan")), b.masked_fill(alone, float("nan"))
        difference = paired_difference(b, a)
        for i, line in enumerate(lines):
            line["metrics"][name] = {
                "first": finite(a[:, i].nanmean()),
                "second": finite(b[:, i].nanmean()),
                **_told_apart(difference[:, i], MEASURES[name]),
                "count": int((~alone[:, i]).sum()),
            }
        change = b - a
        for floor in floors:
            beyond = paired_difference(change[:, own], change[:, floor, None].expand(-1, len(own)))
            for column, i in enumerate(own):
                its_own = lines[i]["metrics"][name].setdefault("beyond", {})
                its_own[methods[floor]] = _told_apart(beyond[:, column], MEASURES[name])
    return {"first": one, "second": other, "target_kind": kind, "pictures": len(pictures), "rows": lines}


def _told_apart(difference: Tensor, measure: Measure) -> dict[str, Any]:
    """A mean difference with its interval, and on whose side that is, if it is on one."""
    mean, low, high = (finite(v) for v in difference)
    better = ""
    if low is not None and high is not None and not low <= 0 <= high:
        better = "second" if (low > 0) == measure.higher_is_better else "first"
    return {"difference": mean, "low": low, "high": high, "better": better}


def as_text(comparison: Mapping[str, Any], metrics: Sequence[str]) -> Iterator[str | Table]:
    """A comparison for the terminal, in parts by groups of metrics: + where the second is better, - where the first."""
    names = escape(f"{comparison['second']} against {comparison['first']}")
    yield (
        f"\n{names}, target {comparison['target_kind']}, {comparison['pictures']} pictures: + better, - worse, "
        "~ not told apart (paired, 95 %)"
    )
    for group in dict.fromkeys(MEASURES[name].group for name in metrics):
        shown = [name for name in metrics if MEASURES[name].group == group]
        text = Table(box=box.SIMPLE)
        text.add_column("method", no_wrap=True)
        for name in shown:
            text.add_column(MEASURES[name].title + (" ↑" if MEASURES[name].higher_is_better else " ↓"), justify="right")
        for line in sorted(comparison["rows"], key=lambda line: line["floor"]):
            cells = (line["metrics"][name] for name in shown)
            text.add_row(escape(line["method"]), *map(_cell, cells), style="dim" if line["floor"] else None)
        yield text


def _cell(cell: Mapping[str, Any]) -> str:
    if cell["difference"] is None:
        return ""
    sign = {"second": "+", "first": "-"}.get(cell["better"], "~")
    return f"{cell['first']:.1f} → {cell['second']:.1f} {sign}"
