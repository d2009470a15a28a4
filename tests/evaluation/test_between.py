"""Two models by the same methods, on figures by hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from reports import a_summary, some_rows, some_thumbnails, write
from rich.console import Console

from interp_zoo.evaluation.between import as_text, compare
from interp_zoo.evaluation.tables import Rows

METRICS = ["average_drop", "insertion"]


def rows(method: str, drops: list[float | None], insertion: float = 50.0) -> dict[int, dict[str, Any]]:
    return {
        i: {"method": method, "index": i, "metrics": {"average_drop": drop, "insertion": insertion + i % 5}}
        for i, drop in enumerate(drops)
    }


@pytest.fixture
def comparison() -> dict[str, Any]:
    """40 pictures: Grad-CAM drops 2 less on the second model, give or take 0.5, and inserts as well but for noise."""
    noise = [(i * 37) % 41 for i in range(40)]
    plain: Rows = {
        "gradcam": rows("gradcam", [float(v) for v in noise]),
        "cam": rows("cam", [1.0] * 40),
        "fakecam": rows("fakecam", [float(v) for v in noise]),
    }
    ours: Rows = {
        "gradcam": rows("gradcam", [None, *(v - 2 + (0.5, -0.5)[i % 2] for i, v in enumerate(noise[1:]))]),
        "fakecam": rows("fakecam", [v + 1.0 for v in noise], insertion=51.0),
    }
    for i, row in ours["gradcam"].items():
        row["metrics"]["insertion"] += (1, -1)[i % 2]
    (found,) = compare({"plain": plain, "ours": ours}, METRICS, "label")
    return found


def test_means_and_paired_differences(comparison: dict[str, Any]) -> None:
    assert (comparison["first"], comparison["second"], comparison["target_kind"]) == ("plain", "ours", "label")
    assert comparison["pictures"] == 40
    gradcam, fakecam = comparison["rows"]  # CAM is the first's alone
    assert (gradcam["method"], gradcam["floor"]) == ("gradcam", False)
    assert (fakecam["method"], fakecam["floor"]) == ("fakecam", True)
    drop = gradcam["metrics"]["average_drop"]
    first = sum((i * 37) % 41 for i in range(1, 40)) / 39  # the picture that one lacks counts for neither
    assert drop["count"] == 39
    assert drop["first"] == pytest.approx(first)
    assert drop["second"] == pytest.approx(first - 2 + 0.5 / 39)
    assert drop["difference"] == pytest.approx(-2 + 0.5 / 39)
    assert -2.2 < drop["low"] < drop["difference"] < drop["high"] < -1.8  # paired: the pictures' spread is not in it
    assert drop["better"] == "second"  # low is good
    assert gradcam["metrics"]["insertion"]["better"] == ""
    assert fakecam["metrics"]["average_drop"]["better"] == "first"
    assert fakecam["metrics"]["insertion"]["better"] == "second"


def test_what_is_gained_beyond_a_map_that_says_nothing(comparison: dict[str, Any]) -> None:
    """Grad-CAM drops 2 less where Fake-CAM drops 1 more; both insert 1 and 0 more: no more than the floor does."""
    gradcam, fakecam = comparison["rows"]
    beyond = gradcam["metrics"]["average_drop"]["beyond"]["fakecam"]
    assert beyond["difference"] == pytest.approx(-3 + 0.5 / 39)
    assert -3.2 < beyond["low"] < beyond["difference"] < beyond["high"] < -2.8
    assert beyond["better"] == "second"
    insertion = gradcam["metrics"]["insertion"]
    assert insertion["difference"] == pytest.approx(0.0)
    assert insertion["beyond"]["fakecam"]["difference"] == pytest.approx(-1.0)
    assert insertion["beyond"]["fakecam"]["better"] == "first"  # the floor gains more
    assert "beyond" not in fakecam["metrics"]["average_drop"]


def test_the_first_is_what_all_others_are_compared_with() -> None:
    its: dict[str, Rows] = {
        name: {"cam": rows("cam", [drop] * 3)} for name, drop in (("a", 1.0), ("b", 2.0), ("c", 4.0))
    }
    found = compare(its, ["average_drop"], "predicted")
    assert [(c["first"], c["second"]) for c in found] == [("a", "b"), ("a", "c")]
    assert [c["rows"][0]["metrics"]["average_drop"]["difference"] for c in found] == [1.0, 3.0]
    assert not compare({"a": its["a"]}, ["average_drop"], "predicted")
    assert not compare({}, ["average_drop"], "predicted")


def test_what_neither_has_is_no_figure(comparison: dict[str, Any]) -> None:
    none: Rows = {"cam": rows("cam", [None] * 3)}
    ((line,),) = (c["rows"] for c in compare({"a": none, "b": none}, ["average_drop"], "label"))
    cell = line["metrics"]["average_drop"]
    assert (cell["first"], cell["second"], cell["difference"], cell["better"], cell["count"]) == (
        None,
        None,
        None,
        "",
        0,
    )


def test_on_the_terminal(comparison: dict[str, Any]) -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(*as_text(comparison, METRICS))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    (gradcam, *_) = (line.split("gradcam")[1].split() for line in said.splitlines() if "gradcam" in line)
    drop = comparison["rows"][0]["metrics"]["average_drop"]
    assert gradcam == [f"{drop['first']:.1f}", "→", f"{drop['second']:.1f}", "+"]
    assert "ours against plain, target label, 40 pictures" in said
    assert "52.0 → 53.0 +" in said
    worse = [line for line in said.splitlines() if line.split()[:1] == ["fakecam"]]
    assert [line.split()[-1] for line in worse] == ["-", "+"]


def test_in_the_report(comparison: dict[str, Any], tmp_path: Path) -> None:
    page = write(tmp_path, a_summary() | {"comparisons": [comparison]}, some_rows(), some_thumbnails())
    assert "ours " in page.headings
    assert '<td class="best">' in page.text
    drop = comparison["rows"][0]["metrics"]["average_drop"]
    assert f"{drop['first']:.1f} → {drop['second']:.1f}" in page.text
    assert "What is explained may differ" not in page.text
    assert "▼" in page.text
    beyond = page.text.partition("beyond fakecam")[2]
    cell = comparison["rows"][0]["metrics"]["average_drop"]["beyond"]["fakecam"]
    assert f"{cell['difference']:.1f} ({cell['low']:.1f} to {cell['high']:.1f})".replace("-", "−") in beyond
