"""The report: what a run measured as one HTML file, with no request to anywhere and no script in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch

from interp_zoo.evaluation import charts
from interp_zoo.evaluation.charts import NONE, Json, mean_of, number, seconds
from interp_zoo.evaluation.records import finite
from interp_zoo.files import replacing
from interp_zoo.metrics.statistics import kendall_tau

GRID = 8  # pictures in a table's grid
WORST = 8  # pictures among its worst cases

GROUPS = {"recognition": "Recognition", "causal": "Causal", "localization": "Localisation", "sanity": "Sanity"}
KINDS = {
    "predicted": "the class that the model predicts",
    "label": "the picture’s label, right or not",
    "least_likely": "the class that the model finds least likely",
}
CAPTIONS = ("average_drop", "average_gain", "insertion", "deletion")  # figures under pictures
QUALITIES = ("average_gain", "insertion", "deletion", "average_drop")  # what cost is drawn against: the first two


def write_report(path: Path, summary: Json, rows: Sequence[Json], thumbnails: Mapping[tuple[str, int], str]) -> None:
    """Writes the report of a run, as a whole or not at all: until it is complete, an older file stays what it was.

    What was not measured is left out, section by section.

    Args:
        path: the HTML file; its folder must be there.
        summary: what `tables` makes of the rows: protocol, versions, models, tables, methods left out.
        rows: a row a picture, method, model and kind of target; those with a map are shown.
        thumbnails: by model and number of the picture, a JPEG in base64.

    Raises:
        ModuleNotFoundError: without the extra "recipes", which brings Jinja2.
    """
    page = _render(_page(summary, rows, thumbnails))
    with replacing(path) as new:
        new.write_text(page, encoding="utf-8", errors="replace")  # file names may hold what UTF-8 cannot write


def worst_cases(rows: Iterable[Json], floors: Iterable[str], metrics: Iterable[str]) -> list[Json]:
    """Rows with the lowest insertion, or the highest average drop where insertion was not asked for, the worst first.

    At most WORST, at most one a picture, none of a floor's.
    """
    floors, metrics = set(floors), set(metrics)
    name = next((n for n in ("insertion", "average_drop") if n in metrics), "")
    sign = -1 if name == "average_drop" else 1
    figures = [(finite(row["metrics"].get(name)), row) for row in rows if row["method"] not in floors]
    ranked = sorted(
        ((sign * figure, row["index"], row["method"], row) for figure, row in figures if figure is not None),
        key=lambda entry: entry[:3],
    )
    pictures: dict[int, Json] = {}
    for _, index, _, row in ranked:
        pictures.setdefault(index, row)
    return list(pictures.values())[:WORST]


def _render(page: Json) -> str:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the report needs Jinja2, which comes with the extra "recipes": pip install "interp_zoo[recipes]"'
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "seconds": seconds}
    return environment.get_template("report.html").render(page)


def _page(summary: Json, rows: Sequence[Json], thumbnails: Mapping[tuple[str, int], str]) -> Json:
    """What the template is filled with."""
    metrics = {m["name"]: m | {"digits": 1 if m.get("unit") == "%" else 2} for m in summary["metrics"]}
    everyone = [(row["method"], row["floor"]) for table in summary["tables"] for row in table["rows"]]
    methods = list(dict.fromkeys(name for name, floor in everyone if not floor))
    floors = list(dict.fromkeys(name for name, floor in everyone if floor))
    look = charts.styles(methods, floors)
    tables = [_table(i, table, metrics, look, rows, thumbnails) for i, table in enumerate(summary["tables"], start=1)]
    return {
        "summary": summary,
        "metrics": list(metrics.values()),
        "methods": methods,
        "floors": floors,
        "tables": tables,
        "comparisons": [_comparison(i, c, metrics) for i, c in enumerate(summary.get("comparisons", []), start=1)],
        "warned": sum(len(table["warnings"]) for table in tables),
        "none_sign": NONE,
    }


def _table(
    number_of: int,
    table: Json,
    metrics: Mapping[str, Json],
    look: Mapping[str, charts.Style],
    rows: Sequence[Json],
    thumbnails: Mapping[tuple[str, int], str],
) -> Json:
    """All sections on one model and one kind of target."""
    shown = {name for row in table["rows"] for name in row["metrics"] if mean_of(row, name) is not None}
    groups = list(dict.fromkeys([*GROUPS, *(m["group"] for m in metrics.values())]))
    columns = [
        m | {"count": _count(m["name"], table["rows"])}
        for g in groups
        if g != "fills"
        for m in metrics.values()
        if m["group"] == g and m["name"] in shown
    ]
    methods = [row for row in table["rows"] if not row["floor"]]
    floors = [row for row in table["rows"] if row["floor"]]
    own = [r for r in rows if (r["model"], r["target_kind"]) == (table["model"], table["target_kind"])]
    names = {r["target"]: r["label"] for r in rows if r["model"] == table["model"] and r["label"]}
    captions = [metrics[n] for n in CAPTIONS if n in metrics] or columns[:4]

    def picture(row: Json) -> Json:
        return _picture(row, names, thumbnails)

    worst = worst_cases(own, [row["method"] for row in floors], metrics)
    return {
        "id": f"t{number_of}",
        "model": table["model"],
        "kind": table["target_kind"],
        "explained": KINDS.get(table["target_kind"], ""),
        "warnings": table.get("warnings") or [],
        "groups": [(GROUPS.get(g, g), n) for g in groups if (n := sum(c["group"] == g for c in columns))],
        "columns": columns,
        "methods": [_line(row, columns, None) for row in methods],
        "floors": [_line(row, columns, methods) for row in floors],
        "behind": any(_behind(row, c["name"]) for row in methods for c in columns),
        "leaders": [leader for c in columns if (leader := _leader(c, methods))],
        "fills": [f for kind in charts.CURVES if (f := _fills(kind, table["rows"], metrics, shown))],
        "curves": [
            c for kind in charts.CURVES if (c := charts.curves_section(kind, table["rows"], look, f"t{number_of}"))
        ],
        "costs": charts.cost_section(
            table["rows"], [metrics[n] for n in QUALITIES if n in shown], look, f"t{number_of}"
        ),
        "tau": _agreement(table.get("agreement"), metrics),
        "grid": _grid(own, [row["method"] for row in (*methods, *floors)], picture, thumbnails),
        "captions": captions,
        "worst": [{"row": r, "picture": picture(r), "image": charts.overlaid(r, thumbnails)} for r in worst],
        "worst_by": "insertion" if "insertion" in metrics else "average_drop",
    }


def _comparison(number_of: int, comparison: Json, metrics: Mapping[str, Json]) -> Json:
    """One model against another: for each method and metric both means, and the paired difference."""
    shown = {n for row in comparison["rows"] for n, cell in row["metrics"].items() if cell["difference"] is not None}
    columns = [m for name, m in metrics.items() if name in shown]
    lines = []
    beyond: dict[str, list[Json]] = {}
    for row in sorted(comparison["rows"], key=lambda row: row["floor"]):
        cells = [(row["metrics"][column["name"]], column["digits"]) for column in columns]
        means = [[number(cell[which], digits) for which in ("first", "second")] for cell, digits in cells]
        changes = [_change(cell, digits) | {"means": pair} for (cell, digits), pair in zip(cells, means, strict=True)]
        lines.append({"method": row["method"], "floor": row["floor"], "cells": changes})
        for floor in cells[0][0].get("beyond", {}) if cells else ():
            its = [_change(cell["beyond"][floor], digits) for cell, digits in cells]
            beyond.setdefault(floor, []).append({"method": row["method"], "cells": its})
    return comparison | {"id": f"c{number_of}", "columns": columns, "lines": lines, "beyond": beyond}


def _change(cell: Json, digits: int) -> Json:
    return {"change": f"{number(cell['difference'], digits)} ({_interval(cell, digits)})", "better": cell["better"]}


def _behind(row: Json, name: str) -> Json | None:
    found: Json | None = (row["metrics"].get(name) or {}).get("behind")
    return found if found and finite(found["mean"]) is not None else None


def _turned(row: Json, metric: Json) -> float | None:
    """A row's mean, turned so that high is good."""
    mean = mean_of(row, metric["name"])
    return mean if mean is None or metric["higher_is_better"] else -mean


def _interval(entry: Json, digits: int) -> str:
    low, high = finite(entry.get("low")), finite(entry.get("high"))
    if low is None or high is None:
        return ""
    return f"{number(low, digits)}{' to ' if low < 0 else '–'}{number(high, digits)}"


def _count(name: str, rows: Sequence[Json]) -> int | None:
    """How many pictures a metric was measured on, if that is the same number for all methods, and not all pictures."""
    counts = {(entry.get("count"), row["pictures"]) for row in rows if (entry := row["metrics"].get(name))}
    (count, pictures), *others = counts
    return count if count and count < pictures and not others else None


def _line(row: Json, columns: Sequence[Json], rivals: Sequence[Json] | None) -> Json:
    """A row of the main table. `rivals`: the methods, if the row is a floor's."""
    cells = []
    for column in columns:
        name, digits = column["name"], column["digits"]
        entry, behind, mine = row["metrics"].get(name) or {}, _behind(row, name), _turned(row, column)
        count = entry.get("count") or 0
        others = [v for r in rivals or () if (v := _turned(r, column)) is not None]
        cells.append(
            {
                "mean": number(mean_of(row, name), digits),
                "interval": _interval(entry, digits),
                "standing": "" if rivals is not None else entry.get("standing") or "",
                "wins": mine is not None and bool(others) and mine >= max(others),
                "count": None if column["count"] or not 0 < count < row["pictures"] else count,
                "behind": behind and f"{number(behind['mean'], digits)} ({_interval(behind, digits)})",
            }
        )
    passes = [f"{v:.1f}".removesuffix(".0") for n in ("forward", "backward", "tail") if (v := row.get(n)) is not None]
    return {"row": row, "cells": cells, "passes": " + ".join(passes)}


def _leader(column: Json, methods: Sequence[Json]) -> Json | None:
    """Who is best by a metric, and how many are not told apart from it."""
    entries = [(row, row["metrics"].get(column["name"]) or {}) for row in methods]
    best = [row["method"] for row, entry in entries if entry.get("standing") == "best"]
    if not best:
        return None
    mean = next(mean_of(row, column["name"]) for row, entry in entries if entry.get("standing") == "best")
    near = [row["method"] for row, entry in entries if entry.get("standing") == "noise"]
    return {"metric": column, "methods": best, "mean": number(mean, column["digits"]), "near": near}


def _fills(kind: str, rows: Sequence[Json], metrics: Mapping[str, Json], shown: set[str]) -> Json | None:
    """Insertion or deletion by what stands where a pixel is not: figures, ranks, and whether the order moves."""
    found = [m for n, m in metrics.items() if n in shown and (n == kind or n.startswith(f"{kind}_"))]
    if len(found) < 2:
        return None
    titles = [m["name"].removeprefix(kind).strip("_").replace("_", " ") or "default" for m in found]
    methods = [row for row in rows if not row["floor"]]
    lines = []
    for row in sorted(rows, key=lambda r: r["floor"]):
        cells = []
        for m in found:
            mine, rank = _turned(row, m), None
            if mine is not None and not row["floor"]:
                rank = 1 + sum(v > mine for r in methods if (v := _turned(r, m)) is not None)
            cells.append((number(mean_of(row, m["name"]), m["digits"]), rank))
        lines.append({"method": row["method"], "floor": row["floor"], "cells": cells})
    taus = {(i, j): _tau(methods, found[i], found[j]) for i, j in combinations(range(len(found)), 2)}
    matrix = [[1.0 if i == j else taus[min(i, j), max(i, j)] for j in range(len(found))] for i in range(len(found))]
    return {
        "title": charts.CURVES[kind][0],
        "fills": titles,
        "lines": lines,
        "higher": found[0]["higher_is_better"],
        "tau": {"titles": titles, "rows": charts.shaded(matrix)},
        "words": _words(
            titles, taus, [[line["method"] for line in lines if line["cells"][k][1] == 1] for k in range(len(found))]
        ),
    }


def _tau(methods: Sequence[Json], one: Json, other: Json) -> float | None:
    """Kendall's tau of the methods' orders by two metrics; None where there is no order."""
    pairs = [
        (a, b) for row in methods if (a := _turned(row, one)) is not None and (b := _turned(row, other)) is not None
    ]
    first, second = torch.tensor(pairs, dtype=torch.float64).view(-1, 2).unbind(1)
    return finite(kendall_tau(first, second))


def _words(titles: Sequence[str], taus: Mapping[tuple[int, int], float | None], first: Sequence[Sequence[str]]) -> str:
    """Whether the order of methods hangs on the fill."""
    known = [(tau, titles[i], titles[j]) for (i, j), tau in taus.items() if tau is not None]
    known.sort(key=lambda pair: pair[0])
    if not known:
        return "There are too few methods for an order."
    low, high = known[0], known[-1]
    degree = "hardly hangs" if low[0] >= 0.8 else "hangs in part" if low[0] >= 0.5 else "hangs strongly"
    text = f"The order of methods {degree} on the fill: Kendall’s tau between two fills is "
    if len(known) == 1:
        text += f"{number(low[0], 2)} ({low[1]} and {low[2]}). "
    else:
        text += (
            f"between {number(low[0], 2)} ({low[1]} and {low[2]}) and {number(high[0], 2)} ({high[1]} and {high[2]}), "
            f"on average {number(sum(k[0] for k in known) / len(known), 2)}. "
        )
    fills: dict[str, list[str]] = {}
    for title, methods in zip(titles, first, strict=True):
        fills.setdefault(" and ".join(methods), []).append(title)
    if len(fills) == 1:
        return text + f"{next(iter(fills))} is first under each of them."
    return text + "First are " + "; ".join(f"{m} under {', '.join(f)}" for m, f in fills.items() if m) + "."


def _agreement(agreement: Json | None, metrics: Mapping[str, Json]) -> Json | None:
    """The heat table of the metrics' agreement; other fills have their own."""
    names = agreement["metrics"] if agreement else []
    kept = [i for i, name in enumerate(names) if name in metrics and metrics[name]["group"] != "fills"]
    if agreement is None or len(kept) < 2:
        return None
    matrix = [[finite(agreement["tau"][i][j]) for j in kept] for i in kept]
    return {"titles": [metrics[names[i]]["title"] for i in kept], "rows": charts.shaded(matrix)}


def _grid(
    rows: Sequence[Json],
    methods: Sequence[str],
    picture: Callable[[Json], Json],
    thumbnails: Mapping[tuple[str, int], str],
) -> Json | None:
    """The first pictures with maps, by all methods that have one."""
    pictures: dict[int, dict[str, Json]] = {}
    for row in sorted(rows, key=lambda r: r["index"]):
        if row.get("map"):
            pictures.setdefault(row["index"], {})[row["method"]] = row
    shown = min(GRID, len(pictures))
    kept = [list(pictures.values())[i * len(pictures) // shown] for i in range(shown)]  # evenly spaced: not one class
    columns = [name for name in methods if any(name in by_method for by_method in kept)]
    if not columns:
        return None
    lines = [
        {
            "picture": picture(next(iter(by_method.values()))),
            "cells": [
                {"row": r, "image": charts.overlaid(r, thumbnails)} if (r := by_method.get(n)) else None
                for n in columns
            ],
        }
        for by_method in kept
    ]
    return {"methods": columns, "lines": lines}


def _picture(row: Json, names: dict[int, str], thumbnails: Mapping[tuple[str, int], str]) -> Json:
    """What is said of a picture beside its maps."""

    def name(index: int | None) -> str:
        known = names | (row.get("names") or {})
        return known.get(index, f"class {index}") if index is not None else ""

    truth, predicted = row.get("truth"), row.get("predicted")
    return {
        "image": thumbnails.get((row["model"], row["index"])),
        "file": row.get("file") or f"picture {row['index']}",
        "label": row.get("label") or name(row["target"]),
        "probability": number(100 * p if (p := finite(row.get("probability"))) is not None else None),
        "truth": name(truth),
        "predicted": name(predicted),
        "right": None if truth is None else truth == predicted,
        "is_truth": truth == row["target"],
    }
