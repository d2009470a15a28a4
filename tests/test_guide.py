"""docs/guide.md: its examples run, its figures are those measured, its tests exist."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
COLUMNS = {"average_gain": 3, "insertion": 4, "deletion": 5, "randomization": 6}


@pytest.mark.usefixtures("demo")
def test_its_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testfile(str(ROOT / "docs" / "guide.md"), module_relative=False)
    assert found.failed == 0
    assert found.attempted > 8


def test_its_figures_are_the_reality_checks() -> None:
    (table,) = json.loads((ROOT / "docs" / "reality-check" / "summary.json").read_text())["tables"]
    measured = {row["method"]: row for row in table["rows"]}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in GUIDE.splitlines() if line.startswith("|")]
    told = [row for row in rows if len(row) == 7 and (row[1].startswith("`")) and row[3]]
    assert len(told) >= 5
    for row in told:
        its = measured[row[1].strip("`")]
        assert row[2] == " + ".join(f"{round(its[kind], 1):g}" for kind in ("forward", "backward", "tail"))
        for name, column in COLUMNS.items():
            assert f"{its['metrics'][name]['mean']:.1f}" == row[column], (row[1], name)


def test_each_pain_has_its_line_and_its_test() -> None:
    lines = re.findall(r"^\| (\d+) \| .* \| `(test_\w+)` \|$", GUIDE, re.MULTILINE)
    assert [int(number) for number, _ in lines] == list(range(1, 26))
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests" / "pains").glob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)", tests))
    for number, name in lines:
        assert name.startswith(f"test_pain_{int(number):02}_")
        assert name in there
    assert {int(n) for n in re.findall(r"test_pain_(\d+)_", " ".join(there))} == set(range(1, 26))
