"""What model cards say of what was measured."""

from __future__ import annotations

from typing import Any

from reproduction.cells import change, measured_metrics, titles
from reproduction.measured import Json, Measured

READING: dict[str, Any] = {
    "title": "How to read the tables",
    "text": [
        "AD: average drop, AG: average gain, AI: average increase, I: insertion, D: deletion, in percent; arrows point "
        "to the better side. For AD, AG and AI the picture in [0, 1] is masked by the map, black outside, and the "
        "label's softmax probability compared. Insertion starts from the picture blurred (11 x 11, or what "
        "`--blur-kernel` says), deletion ends in the mean colour.",
        "`center_gaussian` is a Gaussian in the middle, `fakecam` keeps all but one pixel, `random` is noise: maps "
        "that say nothing of what the network sees, to compare with. AD is won by `fakecam`. The thesis is F. Torres "
        "Figueroa's (2024); docs/reproduction.md in the repository of interp_zoo has its figures beside these.",
    ],
}


def results(measured: Measured, name: str, told: Json) -> dict[str, Any]:
    """A card's results file.

    Args:
        measured: where the figures are.
        name: the model's.
        told: its part of cards.toml: `runs`, of which the first gives the accuracy, and each that compares it with
            another network a section, with `titles` by run; `dataset`, and its `split` if that is not the test split;
            `training`; `sections`, after which the card says how its tables are to be read.

    Raises:
        ValueError: if a run does not have the model.
    """
    first = measured.summary(told["runs"][0])
    accuracy, _ = measured.accuracy(told["runs"][0], name)
    found: dict[str, Any] = {
        "model": name,
        "command": first["command"],
        "results": [
            {
                "dataset": told["dataset"],
                "split": told.get("split", "test"),
                "metric": "accuracy",
                "name": "top-1",
                "value": round(accuracy, 2),
            }
        ],
        "datasets": [told["dataset"]],
        "training": told["training"],
        "sections": [*told["sections"], READING],
    }
    for run in told["runs"]:
        title = told.get("titles", {}).get(run, "Explanations")
        compared = any(its["second"] == name for its in measured.summary(run)["comparisons"])
        found["sections"].append((section if compared else section_alone)(measured, run, name, title))
    return found


def section(measured: Measured, run: str, name: str, title: str) -> dict[str, Any]:
    """What a card says of a model beside what a run compares it with; of methods that it alone has, by itself."""
    found = measured.comparison(run, name)
    lines = found["rows"]
    names = measured_metrics(lines[0])
    cams, floors = (
        [
            [f"`{line['method']}`", *(change(line["metrics"][m]) for m in names)]
            for line in lines
            if line["floor"] is floor
        ]
        for floor in (False, True)
    )
    compared = {line["method"] for line in lines}
    own = [
        [f"`{line['method']}`", *(f"→ {line['metrics'][m]['mean']:.2f}" for m in names)]
        for line in measured.table(run, name)["rows"]
        if line["method"] not in compared
    ]
    (first, _), (second, _) = measured.accuracy(run, found["first"]), measured.accuracy(run, name)
    return {
        "title": title,
        "text": [
            f"`{found['first']}` → `{name}`: means over {found['pictures']:,} pictures, percent; "
            "▲ better, ▼ worse, ≈ not told apart (paired by picture, 95 %). "
            f"Top-1 on these pictures: {first:.2f} → {second:.2f}. The last rows are maps that say nothing.",
        ],
        "columns": ["method", *titles(names)],
        "rows": [*cams, *own, *floors],
        "command": measured.summary(run)["command"],
    }


def section_alone(measured: Measured, run: str, name: str, title: str) -> dict[str, Any]:
    """What a card says of a model that a run compares with no other: methods, and maps that say nothing."""
    found = measured.table(run, name)
    lines = found["rows"]
    names = measured_metrics(lines[0])
    return {
        "title": title,
        "text": [
            f"Means over {found['pictures']:,} pictures, percent. "
            "The last rows are maps that are the same for every network.",
        ],
        "columns": ["method", *titles(names)],
        "rows": [[f"`{line['method']}`", *(f"{line['metrics'][m]['mean']:.2f}" for m in names)] for line in lines],
        "command": measured.summary(run)["command"],
    }
