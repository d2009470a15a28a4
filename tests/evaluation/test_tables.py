"""Tables from rows: means, standings, warnings, agreement; by hand."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from interp_zoo.evaluation.tables import (
    as_text,
    by_method,
    is_floor,
    make_table,
    name_classes,
    settle_box_accuracy,
)
from interp_zoo.explain.labels import Labels

Row = dict[str, Any]


def row(method: str, index: int, kind: str = "predicted", model: str = "m", **figures: float | None) -> Row:
    return {
        "index": index,
        "file": f"{index}.png",
        "model": model,
        "method": method,
        "target_kind": kind,
        "metrics": figures,
        "curves": {"insertion": [0.0, index / 100, 1.0]},
        "hits": None,
        "seconds": 0.5,
        "forward": 2.0,
        "backward": 1.0,
        "tail": 0.0,
        "blank": index == 3,
    }


def table_of(rows: list[Row], methods: list[str], metrics: list[str]) -> dict[str, Any]:
    return make_table(by_method(rows, methods, "m", "predicted"), metrics, "m", "predicted")


def noisy(index: int) -> float:
    return (index * 37) % 41 - 20


@pytest.fixture
def table() -> dict[str, Any]:
    """40 pictures: scorecam drops 1 more than opticam on each, gradcam as much but for noise."""
    rows = []
    for i in range(40):
        rows += [
            row("opticam", i, average_drop=50 + noisy(i), insertion=60.0),
            row("scorecam", i, average_drop=51 + noisy(i), insertion=40.0 + i % 2),
            row("gradcam", i, average_drop=50.1 + noisy(i) + noisy(3 * i + 1), insertion=50.0),
            row("fakecam", i, average_drop=0.5, insertion=10.0),
            row("random", i, average_drop=99.0, insertion=55.0),
        ]
    return table_of(rows, ["gradcam", "opticam", "scorecam", "fakecam", "random"], ["average_drop", "insertion"])


def cells(table: dict[str, Any], metric: str) -> dict[str, dict[str, Any]]:
    return {line["method"]: line["metrics"][metric] for line in table["rows"]}


def test_means_costs_and_curves(table: dict[str, Any]) -> None:
    assert [line["method"] for line in table["rows"]] == ["gradcam", "opticam", "scorecam", "fakecam", "random"]
    assert [line["floor"] for line in table["rows"]] == [False, False, False, True, True]
    first = table["rows"][0]
    assert (first["pictures"], first["blank"], first["seconds"], first["forward"]) == (40, 1, 0.5, 2.0)
    assert first["curves"]["insertion"] == pytest.approx([0, 0.195, 1])
    drop = cells(table, "average_drop")
    assert drop["opticam"]["mean"] == pytest.approx(50 + sum(map(noisy, range(40))) / 40)
    assert drop["opticam"]["low"] < drop["opticam"]["mean"] < drop["opticam"]["high"]
    assert drop["opticam"]["count"] == 40


def test_curves_may_have_holes() -> None:
    """Where a network gave no number."""
    rows = [row("gradcam", i) for i in range(2)]
    rows[0]["curves"] = {"insertion": [None, 0.5, None]}
    rows[1]["curves"] = {"insertion": [0.25, 0.25, None]}
    (line,) = table_of(rows, ["gradcam"], [])["rows"]
    assert line["curves"]["insertion"] == [0.25, 0.375, None]


def test_standings_are_paired(table: dict[str, Any]) -> None:
    drop = cells(table, "average_drop")
    assert {m: cell["standing"] for m, cell in drop.items()} == {
        "opticam": "best",  # low is good
        "scorecam": "",  # 1 behind on each picture, though their own intervals overlap
        "gradcam": "noise",
        "fakecam": "",  # floors have no standing
        "random": "",
    }
    assert drop["scorecam"]["low"] < drop["opticam"]["high"]
    assert drop["opticam"]["behind"] is None
    assert drop["scorecam"]["behind"] == pytest.approx({"mean": 1, "low": 1, "high": 1})
    insertion = cells(table, "insertion")  # high is good: behind is positive, too
    assert insertion["opticam"]["standing"] == "best"
    assert insertion["gradcam"]["behind"] == pytest.approx({"mean": 10, "low": 10, "high": 10})


def test_floors_that_win_are_told(table: dict[str, Any]) -> None:
    says = "which says nothing of what the model sees,"
    assert table["warnings"][:2] == [
        f'"fakecam", {says} wins by AD (0.5): alone, these metrics tell nothing here',
        f'"random", {says} is at least as good as half of the methods by I (55.0, 2 of 3 methods): read these with '
        "others",
    ]
    assert sum("1 of 40 maps are blank" in w for w in table["warnings"]) == 3
    assert len(table["warnings"]) == 5


def test_ties_share_the_star_and_a_floor_that_ties_wins() -> None:
    names = ["gradcam", "opticam", "fakecam"]
    table = table_of([row(m, i, pointing_game=100.0) for m in names for i in range(30)], names, ["pointing_game"])
    assert [cells(table, "pointing_game")[m]["standing"] for m in names] == ["best", "best", ""]
    assert "wins by SP (100.0)" in table["warnings"][0]


def test_agreement_leaves_floors_out_and_turns_drops(table: dict[str, Any]) -> None:
    assert table["agreement"]["metrics"] == ["average_drop", "insertion"]
    # Of high-is-good: opticam > gradcam > scorecam by insertion; by drop scorecam is before gradcam or after it.
    means = {m: -cell["mean"] for m, cell in cells(table, "average_drop").items()}
    swapped = means["scorecam"] > means["gradcam"]
    tau = table["agreement"]["tau"]
    assert tau[0][0] == tau[1][1] == 1
    assert tau[0][1] == tau[1][0] == pytest.approx(1 / 3 if swapped else 1)


def test_what_was_not_measured() -> None:
    rows = [row("gradcam", i, insertion=None, pixel_f1=float(i) if i < 2 else None) for i in range(4)]
    rows += [row("opticam", i, insertion=None, pixel_f1=None) for i in range(4)]
    table = table_of(rows, ["gradcam", "opticam"], ["insertion", "pixel_f1"])
    empty = {"mean": None, "low": None, "high": None, "count": 0, "standing": "", "behind": None}
    assert cells(table, "insertion")["gradcam"] == empty
    assert cells(table, "pixel_f1")["opticam"] == empty
    assert cells(table, "pixel_f1")["gradcam"]["count"] == 2
    assert cells(table, "pixel_f1")["gradcam"]["standing"] == "best"
    assert table["agreement"] == {"metrics": ["pixel_f1"], "tau": [[None]]}
    assert table["warnings"][-1] == "only 4 pictures: the intervals are no more than a hint"


def test_a_map_without_weights_is_told() -> None:
    rows = [row("gradcam", i, randomization=80.0) for i in range(30)] + [
        row("opticam", i, randomization=20.0) for i in range(30)
    ]
    warnings = table_of(rows, ["gradcam", "opticam"], ["randomization"])["warnings"]
    assert [w for w in warnings if "weights" in w] == [
        '"gradcam": 80 % of the map is left when the weights are lost: it shows the picture'
    ]


def test_tables_are_of_one_model_and_target() -> None:
    rows = [row("gradcam", 2), row("gradcam", 1), row("gradcam", 1, "label"), row("gradcam", 1, model="n"), row("x", 1)]
    found = by_method(rows, ["opticam", "gradcam"], "m", "predicted")
    assert list(found) == ["gradcam"]
    assert list(found["gradcam"]) == [1, 2]


def test_box_accuracy_takes_one_threshold_for_all_pictures() -> None:
    rows = {i: row("gradcam", i, box_accuracy=None) for i in range(4)}
    for i, bits in enumerate(["0110", "0100", "1010", ""]):
        rows[i]["hits"] = bits or None
    settle_box_accuracy(rows)
    # Hits by threshold: 1, 2, 2, 0 of 3; the first of the best is the second.
    assert [rows[i]["metrics"]["box_accuracy"] for i in range(4)] == [100.0, 100.0, 0.0, None]


def test_classes_get_their_names(demo: nn.Module) -> None:
    rows = {
        0: row("gradcam", 0) | {"truth": 282, "predicted": 0},
        1: row("gradcam", 1) | {"truth": None, "predicted": 1},
    }
    name_classes(rows, Labels(demo))
    assert [r["names"] for r in rows.values()] == [{282: "tiger cat", 0: "tench"}, {1: "goldfish"}]


def test_methods_with_options_are_floors_as_they_are_without() -> None:
    assert is_floor("random:seed=3")
    assert not is_floor("opticam:iterations=3")


def test_the_terminals_table_fits(table: dict[str, Any]) -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    for part in as_text(table, ["average_drop", "insertion"]):
        console.print(part)
    text = console.export_text()
    assert "m, target predicted, 40 pictures: the best mean in bold, ~ not told apart from it" in " ".join(text.split())
    assert all(f"mind: {warning}" in " ".join(text.split()) for warning in table["warnings"])
    assert table["warnings"]
    assert "AD ↓" in text
    assert "I ↑" in text
    lines = [line.split() for line in text.splitlines() if line.strip()]
    line = next(line for line in lines if line[0] == "gradcam")
    assert line[1].startswith("~")
    assert math.isclose(float(line[1][1:]), cells(table, "average_drop")["gradcam"]["mean"], abs_tol=0.051)
    assert [line[0] for line in lines if line[0] in ("random", "fakecam", "scorecam")] == [
        *("scorecam", "fakecam", "random") * 2
    ]
