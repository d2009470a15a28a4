"""The committed reality check: its page repeats its figures, and the order of the papers comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import READ_TOKENS

from interp_zoo.explain.methods import get_method, list_methods

FOLDER = Path(__file__).parents[2] / "docs" / "reality-check"
COLUMNS = ["average_drop", "average_gain", "average_increase", "insertion", "deletion"]
GRADIENTS = ["gradcam", "gradcam_plusplus", "hirescam", "layercam", "xgradcam"]


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    (found,) = json.loads((FOLDER / "summary.json").read_text())["tables"]
    assert isinstance(found, dict)
    return found


def means(table: dict[str, Any], metric: str) -> dict[str, float]:
    return {line["method"]: line["metrics"][metric]["mean"] for line in table["rows"]}


def test_every_method_is_in_it(table: dict[str, Any]) -> None:
    summary = json.loads((FOLDER / "summary.json").read_text())
    left_out = {entry["method"] for entry in summary["left_out"]}
    assert {line["method"] for line in table["rows"]} | left_out == set(list_methods())
    assert left_out == {"attention", *READ_TOKENS}
    assert {line["pictures"] for line in table["rows"]} == {50}
    assert table["target_kind"] == "predicted"


def test_opticam_is_best_in_recognition_by_a_wide_margin(table: dict[str, Any]) -> None:
    for metric, sign in (("average_drop", -1), ("average_gain", 1), ("average_increase", 1)):
        found = {m: sign * mean for m, mean in means(table, metric).items() if not get_method(m).floor}
        first, second = sorted(found, key=lambda m: found[m], reverse=True)[:2]
        assert first == "opticam"
        (cell,) = (line["metrics"][metric]["behind"] for line in table["rows"] if line["method"] == second)
        assert cell["low"] > 0, "also where pictures are compared in pairs"
    gain = means(table, "average_gain")
    assert gain["opticam"] > 2 * max(gain[m] for m in GRADIENTS)


def test_gradients_are_ahead_in_insertion_and_deletion(table: dict[str, Any]) -> None:
    insertion, deletion = means(table, "insertion"), means(table, "deletion")
    assert max(insertion[m] for m in GRADIENTS) > insertion["opticam"]
    assert min(deletion[m] for m in GRADIENTS) < deletion["opticam"]


def test_rise_is_best_in_insertion(table: dict[str, Any]) -> None:
    """By so much as the page says."""
    found = means(table, "insertion")
    first, second = sorted(found, key=lambda m: found[m], reverse=True)[:2]
    assert first == "rise"
    (cell,) = (line["metrics"]["insertion"]["behind"] for line in table["rows"] if line["method"] == second)
    assert (
        f"by {cell['mean']:.1f} ({cell['low']:.1f} to {cell['high']:.1f}, paired)" in (FOLDER / "README.md").read_text()
    )


def test_fakecam_is_told(table: dict[str, Any]) -> None:
    assert means(table, "average_drop")["fakecam"] < 2
    told = [w for w in table["warnings"] if w.startswith('"fakecam", which says nothing of what the model sees')]
    assert any("AD (" in w for w in told)


def test_guided_backprop_fails_parameter_randomisation(table: dict[str, Any]) -> None:
    left = {m: share for m, share in means(table, "randomization").items() if not get_method(m).floor}
    assert max(left, key=lambda m: left[m]) == "guided_backprop"
    assert left["guided_backprop"] > 50
    assert any(w.startswith('"guided_backprop": 62 % of the map is left') for w in table["warnings"])


def test_the_page_repeats_the_figures(table: dict[str, Any]) -> None:
    lines = [line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| `")]
    told = {
        cells[0].strip(" `"): cells[1:] for cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines)
    }
    assert told.keys() == {line["method"] for line in table["rows"]}
    for line in table["rows"]:
        want = [f"{line['metrics'][name]['mean']:.1f}" for name in COLUMNS]
        assert told[line["method"]][: len(COLUMNS)] == want
        passes = [float(number) for number in told[line["method"]][-2].split(" + ")]
        assert passes == pytest.approx([line[key] for key in ("forward", "backward", "tail")], abs=0.051)


def test_it_is_small_and_names_no_machine() -> None:
    files = [p for p in FOLDER.rglob("*") if p.is_file()]
    assert {p.name for p in files} == {"README.md", "report.html", "summary.json"}
    assert sum(p.stat().st_size for p in files) < 2 * 2**20
    for file in files:
        text = file.read_text()
        assert "/work" not in text
        assert "/home" not in text
